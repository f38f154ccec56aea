"""How often the gate lets an equal challenger pass, and holds one that learned wrong labels.

python -m benchmarks.nights.gate --plan benchmarks/nights/gates/ml-100k.yaml --json OUT [--minutes 45]

An equal challenger learned the same night as the release that it is judged against, with another
seed. A poisoned one learned a day with wrong ratings, by which it is also judged, as it would be:
nobody knows better that night. Writes the results after each challenger and goes on where it was
stopped; with --minutes nothing new begins after that time.
"""

import argparse
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field, ValidationError
from scipy.stats import binomtest

from benchmarks.nights.plan import Plan, read_plan
from engine.config import EngineConfig, Section
from engine.errors import ConfigError
from jobs.exit_code import exit_code

if TYPE_CHECKING:
    from benchmarks.nights.replay import Ground
    from engine.releases.registry import Registry
    from jobs.nightly_update import Challenge

ARM = "nights"
EQUAL = "equal"


class GatePlan(Section):
    """Whom the gate sees."""

    title: str
    """Heading in the results."""
    nights: str
    """Plan of a replay; the nights before are those of its arm `nights`."""
    night: int = Field(ge=1)
    """The night that is spent again and again."""
    equal: int = Field(ge=0)
    """Challengers of other seeds."""
    poisoned: dict[str, dict[float, int]]
    """How (`flip`, `draw`) -> share of the day's events -> challengers."""

    def trials(self) -> list[dict[str, Any]]:
        """Return every challenger: how its day was poisoned, by which share, and its seed."""
        equal = [{"how": EQUAL, "share": 0.0, "seed": seed} for seed in range(1, self.equal + 1)]
        return equal + [
            {"how": how, "share": share, "seed": seed}
            for how, numbers in self.poisoned.items()
            for share, number in sorted(numbers.items(), reverse=True)
            for seed in range(1, number + 1)
        ]


def read_gate_plan(path: str) -> GatePlan:
    """Read a plan; raise ConfigError that names what is wrong."""
    try:
        plan = GatePlan.model_validate(yaml.safe_load(Path(path).read_text()))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"plan {path!r}: {error}") from error
    wrong = sorted(set(plan.poisoned) - {"flip", "draw"})
    if wrong:
        raise ConfigError(f"plan {path!r}: poisoned: {wrong[0]!r} is neither 'flip' nor 'draw'")
    return plan


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the gate; return the exit code: 3 if the time was up before the last challenger."""
    parser = argparse.ArgumentParser(description="Try the gate of the nights.")
    parser.add_argument("--plan", required=True, help="YAML file of challengers")
    parser.add_argument("--json", required=True, help="file of the results")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after")
    options = parser.parse_args(arguments)
    left: list[int] = []
    return exit_code(lambda: left.append(run(options))) or (3 if any(left) else 0)


def run(options: argparse.Namespace) -> int:
    """Judge every challenger that is missing; return how many are left."""
    from benchmarks.race import circumstances  # --help needs neither torch nor Ray
    from engine import storage
    from jobs.start import configure_logging, start_ray

    end_s = time.monotonic() + 60 * options.minutes
    plan = read_gate_plan(options.plan)
    nights = read_plan(plan.nights)
    found: dict[str, Any] = {"plan": plan.settings(), "nights": nights.settings(), "trials": []}
    if storage.exists(options.json):
        before = storage.read_json(options.json)
        if {name: before.get(name) for name in ("plan", "nights")} == {
            name: found[name] for name in ("plan", "nights")
        }:
            found["trials"] = before["trials"]
    done = [{name: each[name] for name in ("how", "share", "seed")} for each in found["trials"]]
    missing = [each for each in plan.trials() if each not in done]
    if missing:
        configure_logging()
        logging.getLogger("benchmarks").setLevel(logging.INFO)
        start_ray()
        gate = Gate.prepare(plan, nights)
    while missing and time.monotonic() < end_s:
        trial = missing.pop(0)
        found["trials"].append({**trial, **gate.judge(trial), "commit": circumstances()["commit"]})
        found["rates"] = rates_of(found["trials"])
        storage.write_json(options.json, {
            "command": " ".join(["python -m benchmarks.nights.gate", *sys.argv[1:]]),
            **circumstances(), **found,
        })
        print(line_of(found["trials"][-1]), flush=True)
    for rate in rates_of(found["trials"]):
        print(rate_line(rate))
    return len(missing)


class Gate:
    """One night, to be spent again and again from the same release."""

    def __init__(self, ground: "Ground", plan: GatePlan, parent_id: str) -> None:
        self._ground, self._parent_id = ground, parent_id
        self._day = ground.days[plan.night]
        self._registry, self._config = _workplace(ground, parent_id)
        self._rival_id: str | None = None

    @classmethod
    def prepare(cls, plan: GatePlan, nights: Plan) -> "Gate":
        """Train the first release and spend the nights before."""
        from benchmarks.nights.replay import Arm, Ground

        ground = Ground.prepare(nights)
        arm, live = Arm(ground, ARM), ground.base_id
        for number in range(1, plan.night):
            live = arm.night(number)["live"]
        return cls(ground, plan, live)

    def judge(self, trial: Mapping[str, Any]) -> dict[str, Any]:
        """Return what was decided of a challenger, and why."""
        from benchmarks.nights.poison import poison_day

        if trial["how"] == EQUAL:
            made = self._spend(self._day.folder, trial["seed"], self._rival())
        else:
            ground = self._ground
            made = self._spend(poison_day(
                ground.root, ground.cut, self._day.folder, trial["how"], trial["share"],
                trial["seed"],
            ))
        detail = made.detail()
        return {
            "release_id": made.release_id, "verdict": made.decision.verdict.value,
            "reasons": list(made.decision.reasons),
            **{name: detail[name] for name in ("difference", "old")},
        }

    def _rival(self) -> str:
        """Return the release that learned the night with the configured seed."""
        if self._rival_id is None:
            self._rival_id = self._spend(self._day.folder).release_id
        assert self._rival_id is not None
        return self._rival_id

    def _spend(self, folder: str, more_seed: int = 0, rival_id: str | None = None) -> "Challenge":
        from engine.state.nights import Entry, EntryKind
        from jobs.nightly_update import challenge

        seed = self._config.run.seed + more_seed
        config = self._config.model_copy(
            update={"run": self._config.run.model_copy(update={"seed": seed})}
        )
        opened = Entry(
            EntryKind.OPENED, self._parent_id, since_s=self._day.start_s, until_s=self._day.end_s,
            detail={"registry": self._registry.root, "events": [folder]},
        )
        return challenge(self._registry, config, opened, rival_id=rival_id)


def _workplace(ground: "Ground", parent_id: str) -> "tuple[Registry, EngineConfig]":
    """Return a registry of the gate's own with the live release, and the settings of its nights."""
    from benchmarks.live import copy_release
    from benchmarks.nights.replay import registry_of
    from engine.releases.registry import Registry

    config = ground.plan.engine_config({
        **ground.plan.arms[ARM].overrides, "run.registry": registry_of(ground.plan, "gate"),
        "night.keep_releases": None, "run.state": None,
    })
    registry = Registry(config.run.registry)
    if parent_id not in registry.list():
        copy_release(Registry(registry_of(ground.plan, ARM)), parent_id, registry, parent_id)
    return registry, config


def rates_of(trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the share that was promoted of each kind of challenger, with an exact 95% interval."""
    kinds = list(dict.fromkeys((each["how"], each["share"]) for each in trials))
    rates = []
    for kind in kinds:
        verdicts = [each["verdict"] for each in trials if (each["how"], each["share"]) == kind]
        promoted = verdicts.count("promote")
        interval = binomtest(promoted, len(verdicts)).proportion_ci()
        rates.append({
            "how": kind[0], "share": kind[1], "challengers": len(verdicts), "promoted": promoted,
            "low": float(interval.low), "high": float(interval.high),
        })
    return rates


def rate_line(rate: Mapping[str, Any]) -> str:
    """Return what is printed of a rate."""
    return (
        f"{_name(rate)}: {rate['promoted']} of {rate['challengers']} promoted "
        f"(share between {rate['low']:.2f} and {rate['high']:.2f})"
    )


def line_of(trial: Mapping[str, Any]) -> str:
    """Return what is printed of a challenger."""
    return f"{_name(trial)}, seed {trial['seed']}: {trial['verdict']}; {trial['reasons'][0]}"


def _name(kind: Mapping[str, Any]) -> str:
    return EQUAL if kind["how"] == EQUAL else f"{kind['how']} {kind['share']:.0%} of the day"


if __name__ == "__main__":
    sys.exit(main())
