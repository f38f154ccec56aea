"""Replay a data set night by night, and measure each day what the releases of the night before say.

python -m benchmarks.nights --plan benchmarks/nights/short.yaml [--json OUT]

Prints for each night what was decided, and the AUC of the day after beside that of the first
release, with 95% intervals over users. A replay that was stopped goes on where it was.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.nights.plan import read_plan
from jobs.exit_code import exit_code
from jobs.intervals import format_interval


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay; return the exit code."""
    parser = argparse.ArgumentParser(description="Replay a data set night by night.")
    parser.add_argument("--plan", required=True, help="YAML file of benchmarks/nights")
    parser.add_argument("--json", help="file of the results")
    return exit_code(run, parser.parse_args(arguments))


def run(options: argparse.Namespace) -> None:
    """Replay every arm; write the results after each night."""
    plan = read_plan(options.plan)
    from benchmarks.nights.replay import Arm, Ground  # --help needs neither torch nor Ray
    from benchmarks.race import circumstances
    from engine import storage
    from jobs.start import configure_logging, start_ray

    configure_logging()
    logging.getLogger("benchmarks").setLevel(logging.INFO)
    start_ray()
    ground = Ground.prepare(plan)
    found: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.nights", *sys.argv[1:]]), **circumstances(),
        "plan": plan.settings(), "arms": {},
    }
    for name in plan.arms:
        arm = Arm(ground, name)
        nights: list[dict[str, Any]] = []
        found["arms"][name] = nights
        for number in range(1, plan.nights + 1):
            nights.append(arm.night(number))
            print(line_of(name, nights[-1]), flush=True)
            if options.json:
                storage.write_json(options.json, found)


def line_of(arm: str, night: Mapping[str, Any]) -> str:
    """Return what is printed of a night."""
    after = night["day_after"]
    figures = [f"{model} AUC {format_interval(after['sample'][model]['auc'])}"
               for model in ("crm_calibrated", "fused")]
    if after["minus_first"]:
        fused = after["minus_first"]["sample"]["fused"]["auc"]
        figures.append(f"fused minus the first release's {format_interval(fused, '+')}")
    seconds = sum(seconds for _, seconds in night.get("stage_seconds", ()))
    spent = f", {seconds:.0f} s of stages" if seconds else ""
    return f"{arm}, night {night['night']}: {night['kind']}{spent}; {'; '.join(figures)}"


if __name__ == "__main__":
    sys.exit(main())
