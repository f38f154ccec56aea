"""HTTP to answer: latencies by number of clients, and what the service adds to its models' time.

python -m benchmarks.latency --config jobs/configs/ml-100k.yaml --json OUT

    clients     1, 8, 32 and 128 that each wait for their answer, under a deadline
    overhead    one client; in turn the service and a bare FastAPI application around the same
                retriever and scorer in one process

What is added is the time from request to answer without that of history, candidates, CRM, prompts
and language model.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.live import (
    FIRST,
    Clients,
    Reply,
    Target,
    quantiles,
    serve_copy,
    summary,
)
from benchmarks.race import circumstances, write_result
from engine.config import ServingConfig, load_config
from jobs import demo

NUMBERS = (1, 8, 32, 128)
MODEL_STAGES = ("history", "candidates", "crm", "prompts", "llm")
ROUNDS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve, measure, print and write the result; with --bare be the bare application."""
    parser = argparse.ArgumentParser(description="Latencies of the live system.")
    parser.add_argument("--config", help="YAML file of a run with a live release")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement")
    parser.add_argument("--deadline-ms", type=int, default=1000, help="of each request")
    parser.add_argument("--json", help="file of the result")
    parser.add_argument("--bare", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.bare:
        return serve_bare(*options.bare)
    from jobs.start import configure_logging, start_ray  # --help needs no Ray

    configure_logging()
    with tempfile.TemporaryDirectory() as folder:
        target = serve_copy(options.config, folder, start_ray())
        cache = load_config(options.config).base_model.cache
        found = asyncio.run(measure(target, cache, options.seconds, options.deadline_ms))
    command = " ".join(["python -m benchmarks.latency", *sys.argv[1:]])
    result = {"command": command, **circumstances(), **found}
    print(json.dumps(result, indent=2))
    if options.json:
        write_result(result, options.json)
    return 0


async def measure(
    target: Target, model_cache: str, seconds: float, deadline_ms: int
) -> dict[str, Any]:
    """Return both measurements."""
    await Clients(target).closed(1, 2.0)        # what is loaded only once
    by_clients = {}
    for number in NUMBERS:
        replies = await Clients(target, deadline_ms).closed(number, seconds)
        by_clients[str(number)] = described(replies)
    return {
        "deadline_ms": deadline_ms, "clients": by_clients,
        "overhead": await overhead(target, model_cache, seconds / ROUNDS),
    }


def described(replies: Sequence[Reply]) -> dict[str, Any]:
    """Return shares, latencies by mode, and the mean time of each stage."""
    modes = Counter(reply.mode for reply in replies if reply.mode is not None)
    stages: dict[str, list[float]] = {}
    for reply in replies:
        for stage, milliseconds in reply.stage_ms.items():
            stages.setdefault(stage, []).append(milliseconds)
    return {
        **summary(replies, {200, 429}),
        "latency_s_by_mode": {
            str(mode): quantiles([each.latency_s for each in replies if each.mode == mode])
            for mode in modes
        },
        "mean_stage_ms": {name: statistics.fmean(values) for name, values in stages.items()},
    }


async def overhead(target: Target, model_cache: str, seconds: float) -> dict[str, Any]:
    """Return what service and bare application add, at the median and by round."""
    port = demo.free_port(0)
    process = subprocess.Popen([
        sys.executable, "-m", "benchmarks.latency", "--bare", target.registry.root,
        target.database_url, model_cache, str(port),
    ], env={**os.environ, "RAY_ADDRESS": ""})
    bare = replace(target, endpoint=f"http://127.0.0.1:{port}")
    added: dict[str, list[float]] = {"service": [], "bare": []}
    try:
        await asyncio.to_thread(demo.wait_until_ready, bare.endpoint)
        await Clients(bare).closed(1, 2.0)
        for _ in range(ROUNDS):
            for name, each in (("service", target), ("bare", bare)):
                added[name].append(added_ms(await Clients(each).closed(1, seconds)))
    finally:
        process.terminate()
        process.wait()
    return {
        **{f"{name}_ms": {"median": statistics.median(values), "rounds": values}
           for name, values in added.items()},
        "service_minus_bare_ms": statistics.median(
            one - other for one, other in zip(added["service"], added["bare"], strict=True)
        ),
    }


def added_ms(replies: Sequence[Reply]) -> float:
    """Return the median of what is not the models' time."""
    return statistics.median(
        1000 * reply.latency_s - sum(reply.stage_ms.get(stage, 0.0) for stage in MODEL_STAGES)
        for reply in replies if reply.mode == "full"
    )


def serve_bare(registry: str, database_url: str, model_cache: str, port: str) -> int:
    """Answer POST /v1/recommend in one process, one request at a time."""
    import torch
    import uvicorn
    from fastapi import FastAPI

    from engine.recommender.loading import load_release
    from engine.recommender.lookup import find
    from engine.recommender.ranking import rank
    from engine.releases.registry import Registry
    from engine.serving.checks import recommend_query
    from engine.serving.schemas import RecommendRequest
    from engine.state.database import open_database

    config = ServingConfig(database_url=database_url, model_cache=model_cache)
    torch.set_num_threads(config.threads)
    release = load_release(Registry(registry), FIRST, model_cache=model_cache, device="auto")
    database, api = open_database(database_url), FastAPI()

    def recommend(request: RecommendRequest) -> dict[str, Any]:
        start_s = time.perf_counter()
        found = find(release, database, recommend_query(request, config), config.ranking)
        assert found.task is not None
        [ranking] = rank(release, [found.task])
        total_ms = 1000 * (time.perf_counter() - start_s)
        return {
            "mode": ranking.mode, "release_id": release.release_id,
            "items": [[item.item_id, item.title, item.score] for item in ranking.items],
            "stage_ms": {**found.stage_ms, **ranking.stage_ms, "total": total_ms},
        }

    api.post("/v1/recommend")(recommend)
    api.get("/readyz")(lambda: {"is_ready": True})
    uvicorn.run(api, host="127.0.0.1", port=int(port), log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main())
