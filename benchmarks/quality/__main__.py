"""What each part adds, beside what a team would run instead, row by row.

python -m benchmarks.quality --plan benchmarks/quality/ml-100k.yaml
    [--out benchmarks/results/quality/ml-100k] [--rows bank-user lora-64] [--minutes 45]

Each row is a file <out>/<row>-<seed>.json. What is done is not done again, and a run that was
stopped goes on where it was; with --minutes nothing new begins after that time.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.plan import Plan, read_plan
from engine.errors import EngineError

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the plan; return the exit code: 0 where every row is done."""
    parser = argparse.ArgumentParser(description="Train and measure the rows of a plan.")
    parser.add_argument("--plan", required=True, help="YAML file of benchmarks/quality")
    parser.add_argument("--out", help="folder of the results; benchmarks/results/quality/<plan>")
    parser.add_argument("--rows", nargs="*", help="only these rows")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after")
    options = parser.parse_args(arguments)
    out = Path(options.out or f"benchmarks/results/quality/{Path(options.plan).stem}")
    try:
        plan = read_plan(options.plan)
        return run(plan, out, options.rows or plan.rows, options.minutes * 60)
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(plan: Plan, out: Path, names: Sequence[str], limit_s: float) -> int:
    """Train and write what is missing; return 0 if nothing is, 3 if time ran out."""
    from benchmarks.quality.training import Bench, describe  # --help needs neither torch nor Ray
    from jobs.start import configure_logging, start_ray

    configure_logging()
    logging.getLogger("benchmarks").setLevel(logging.INFO)
    start_ray()
    end_s = time.monotonic() + limit_s
    bench = Bench(plan)
    for name, seed in units(plan, names):
        if time.monotonic() > end_s:
            print(f"time is up before {name} with seed {seed}; the same command goes on")
            return 3
        log.info("row %s, seed %d", name, seed)
        trained = bench.train(name, seed)
        path = out / f"{name}-{seed}.json"
        keys = {"bank": trained.bank.key, "scores": trained.scores.key}
        if not path.exists() or json.loads(path.read_text())["artifacts"] != keys:
            write(path, describe(bench, name, seed, trained))
    return 0


def units(plan: Plan, names: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield rows and seeds: every row once before any row twice."""
    for seed in plan.seeds:
        for name in names:
            yield name, seed


def write(path: Path, row: dict[str, Any]) -> None:
    """Write one row with its circumstances and print its main figures."""
    from benchmarks.race import circumstances

    path.parent.mkdir(parents=True, exist_ok=True)
    value = {"command": " ".join(["python -m benchmarks.quality", *sys.argv[1:]]),
             **circumstances(), **row}
    path.write_text(json.dumps(value, indent=1) + "\n")
    for model in ("llm", "fused"):
        found = row["test"]["models"][model]
        print(f"{row['row']:<20} seed {row['seed']} {model:<6}", *(
            f"{name} {found[name]['value']:.4f}" for name in ("auc", "gauc", "log_loss")
        ))


if __name__ == "__main__":
    sys.exit(main())
