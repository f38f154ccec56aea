"""What each part adds, beside what a team would run instead, row by row.

python -m benchmarks.quality --plan benchmarks/quality/ml-100k.yaml
    [--out benchmarks/results/quality/ml-100k] [--rows bank-user lora-64] [--minutes 45]

Each row is a file <out>/<row>-<seed>.json with its logits beside it (results.py), or
<out>/<row>.json, without a language model, and comparisons.json holds the paired differences of
those that are done. What has a file of the same settings is not made again, wherever that was, and
a run that was stopped goes on where it was; with --minutes nothing new begins after that time.
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from benchmarks.quality.plan import Plan, read_plan, results_folder
from jobs.exit_code import exit_code

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the plan; return the exit code: 0 where every row is done."""
    parser = argparse.ArgumentParser(description="Train and measure the rows of a plan.")
    parser.add_argument("--plan", required=True, help="YAML file of benchmarks/quality")
    parser.add_argument("--out", help="folder of the results; benchmarks/results/quality/<plan>")
    parser.add_argument("--rows", nargs="*", help="only these rows and references, or `lists`")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after")
    options = parser.parse_args(arguments)
    return exit_code(run, options)


def run(options: argparse.Namespace) -> int:
    """Train and write what is missing; return 0 if nothing is, 3 if time ran out."""
    plan, out = read_plan(options.plan), results_folder(options.plan, options.out)
    names = options.rows or [*plan.rows, *plan.references, "lists"]
    from benchmarks.quality.results import Results  # --help needs neither torch nor Ray
    from benchmarks.quality.training import Bench
    from benchmarks.race import circumstances
    from jobs.start import configure_logging, start_ray

    configure_logging()
    logging.getLogger("benchmarks").setLevel(logging.INFO)
    start_ray()
    end_s = time.monotonic() + 60 * options.minutes
    source = {"command": " ".join(["python -m benchmarks.quality", *sys.argv[1:]]),
              **circumstances()}
    for title, write in missing(Bench(plan, Results(out)), names, source):
        if time.monotonic() > end_s:
            print(f"time is up before {title}; the same command goes on")
            return 3
        log.info("row %s", title)
        write()
    return 0


def missing(
    bench: Any, names: Sequence[str], source: dict[str, Any]
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield what is not done under the plan's settings, by its name: rows, references, lists."""
    from benchmarks.quality.lists import Lists
    from benchmarks.race import write_result

    plan, results = bench.plan, bench.results
    for name, seed in units(plan, names):
        if bench.done(name, seed) is None:
            yield f"{name}, seed {seed}", partial(write_row, bench, results, name, seed, source)
    references, ground = bench.references(), bench.ground_digest()

    def write(name: str, digest: str, describe: Callable[[], dict[str, Any]]) -> None:
        found = {**source, "settings_digest": digest, **describe()}
        write_result(found, results.folder / f"{name}.json")

    for name in (each for each in names if each in plan.references):
        if not results.has(name, ground):
            yield name, partial(write, name, ground, partial(references.describe, name))
    if plan.lists and "lists" in names:
        digest = f"{ground} {bench.settings_digest(plan.lists)}"
        if not results.has("lists", digest):
            yield "lists", partial(
                write, "lists", digest, lambda: Lists(bench, plan.lists, plan.seeds[0]).describe()
            )


def units(plan: Plan, names: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield rows and seeds: every row once before any row twice."""
    for seed in plan.seeds:
        for name in plan.rows:
            if name in names and (seed == plan.seeds[0] or name not in plan.once):
                yield name, seed


def write_row(bench: Any, results: Any, name: str, seed: int, source: dict[str, Any]) -> None:
    """Train a row, write its files and compare it with those that are done."""
    from benchmarks.quality.comparison import answered_rows
    from benchmarks.quality.training import describe
    from engine.metrics.ctr import SHOWN

    trained = bench.train(name, seed)
    table = answered_rows(trained.scores, trained.fitted(), bench.asked_rows(name))
    row = describe(bench, name, seed, trained)
    results.write({**source, **row}, table)
    for model in ("llm", "fused"):
        found = row["test"]["models"][model]
        print(f"{name:<20} seed {seed} {model:<6}", *(
            f"{metric} {found[metric]['value']:.4f}"
            for metric in SHOWN
        ), flush=True)
    compare(bench, results, source)


def compare(bench: Any, results: Any, source: dict[str, Any]) -> None:
    """Write the paired differences of all rows that are done."""
    from benchmarks.quality.comparison import Comparison
    from benchmarks.race import write_result

    sheets: dict[str, list[Any]] = {}
    for name, seed in units(bench.plan, bench.plan.rows):
        row = bench.done(name, seed)
        if row is not None:
            sheets.setdefault(name, []).append(results.table(row, bench.asked_rows(name)))
    config = bench.config
    found = Comparison(
        sheets, num_draws=config.evaluation.bootstrap_draws, seed=config.run.seed
    ).to_json()
    write_result({**source, "pairs": found}, results.folder / "comparisons.json")


if __name__ == "__main__":
    sys.exit(main())
