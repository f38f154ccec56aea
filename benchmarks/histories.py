"""Raw events -> histories: interactions per second and peak memory as the log grows.

python -m benchmarks.histories --json benchmarks/results/histories.json
    [--sizes 100000 1000000 10000000] [--store-mib 512] [--partition-rows 62500]

Each size is a Ray of its own with a fixed object store: import (check, shuffle by user) and
histories of generated ratings whose users are active by a power law. Memory is the sum of PSS
(shared pages counted once) over driver, Ray and workers: `total_mib` at its peak while the stages
run, `idle_mib` of it before them, `peak_mib` the difference.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.race import circumstances, write_result
from engine.config import EngineConfig

ITEMS = 20_000
EVENTS_PER_USER = 100
CHUNK = 1_000_000
SAMPLE_EVERY_S = 0.2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description="Measure import and histories as a log grows.")
    parser.add_argument("--json", required=True, help="file for the result")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--store-mib", type=int, default=512)
    parser.add_argument("--partition-rows", type=int, default=62_500)
    parser.add_argument("--cpus", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {
        "benchmark": "histories", "command": " ".join(sys.argv[1:]), **circumstances(),
        "object_store_mib": options.store_mib, "cpus": options.cpus, "sizes": {},
    }
    for size in options.sizes:
        with multiprocessing.get_context("spawn").Pool(1) as pool:      # a Ray of its own
            result["sizes"][str(size)] = pool.apply(measure, (size, options))
        result["peak_growth"] = growth(result["sizes"])
        write_result(result, options.json)
    print(json.dumps(result, indent=2))
    return 0


def growth(sizes: dict[str, Any]) -> dict[str, float]:
    """Return each size's memory at its peak over that of the size before it."""
    peaks = [(size, found["total_mib"]) for size, found in sizes.items()]
    return {
        f"{size} over {smaller}": peak / before
        for (smaller, before), (size, peak) in pairwise(peaks)
    }


def measure(size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Import `size` events and build their histories; return rates and memory."""
    import ray

    from engine.stages.histories import build_histories
    from engine.stages.interactions import import_data

    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source"
        generate(source, size)
        config = EngineConfig.model_validate({
            "run": {"root": f"{name}/run"},
            "source": {"format": "parquet", "path": str(source), "item_fields": [],
                       "user_fields": [], "columns": {"rating": "rating"}},
            "prompt": {"candidate_fields": []},
            "histories": {"num_partitions": max(8, size // options.partition_rows)},
        })
        ray.init(num_cpus=options.cpus, object_store_memory=options.store_mib * 2**20,
                 include_dashboard=False, log_to_driver=False, _temp_dir=name)
        with watched_memory() as memory:
            start_s = time.perf_counter()
            interactions = import_data(config.run.root, config)
            middle_s = time.perf_counter()
            histories = build_histories(config.run.root, config, interactions)
            end_s = time.perf_counter()
        ray.shutdown()
    refused = sum(interactions.facts["quarantined"]["events"].values())     # chance duplicates
    if histories.facts["events"] + refused != size:
        raise AssertionError(f"{size} events went in, {histories.facts['events']} came out")
    return {
        "interactions_per_s": size / (end_s - start_s), "import_s": middle_s - start_s,
        "histories_s": end_s - middle_s, "refused": refused, "users": histories.facts["users"],
        "longest": histories.facts["longest"], **memory,
        "partitions": config.histories.num_partitions,
    }


def generate(folder: Path, size: int) -> None:
    """Write interactions.parquet (users by a power law) and items.parquet."""
    folder.mkdir()
    draw = np.random.default_rng(1)
    users = max(10, size // EVENTS_PER_USER)
    activity = draw.pareto(1.2, users) + 0.1
    reach = np.cumsum(activity / activity.sum())
    pq.write_table(pa.table({
        "item_id": [f"i{n}" for n in range(ITEMS)], "title": [f"Item {n}" for n in range(ITEMS)],
    }), folder / "items.parquet")
    schema = pa.schema([("user_id", pa.string()), ("item_id", pa.string()),
                        ("timestamp", pa.int64()), ("rating", pa.float32())])
    with pq.ParquetWriter(folder / "interactions.parquet", schema) as writer:
        for start in range(0, size, CHUNK):
            count = min(CHUNK, size - start)
            owners = np.searchsorted(reach, draw.random(count)).clip(0, users - 1)
            items = (ITEMS * draw.random(count) ** 2).astype(np.int64)
            writer.write_table(pa.table([
                pa.array(np.char.add("u", owners.astype(str))),
                pa.array(np.char.add("i", items.astype(str))),
                pa.array(10**9 + draw.integers(0, 10**8, count)),
                pa.array(draw.integers(1, 6, count).astype(np.float32)),
            ], schema=schema), row_group_size=100_000)


@contextmanager
def watched_memory() -> Iterator[dict[str, float]]:
    """Yield a dictionary that holds the memory before and at its peak when the block has ended."""
    found: dict[str, float] = {}
    done = threading.Event()
    idle_mib, peak_mib = held_mib(), 0.0

    def watch() -> None:
        nonlocal peak_mib
        while not done.wait(SAMPLE_EVERY_S):
            peak_mib = max(peak_mib, held_mib())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
        found |= {"idle_mib": idle_mib, "peak_mib": peak_mib - idle_mib, "total_mib": peak_mib}


def held_mib() -> float:
    """Return the PSS of this process and all below it."""
    here = psutil.Process()
    total = 0
    for process in [here, *here.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += process.memory_full_info().pss
    return total / 2**20


if __name__ == "__main__":
    sys.exit(main())
