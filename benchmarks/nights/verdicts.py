"""How often an equal challenger is promoted, and one that learned wrong labels is held.

python -m benchmarks.nights.verdicts --plan benchmarks/nights/again/ml-100k.yaml --json OUT
    [--minutes 45]

An equal challenger learned the same night as its rival, with another seed: the rival is the
challenger of the seed before. A poisoned one learned a day with wrong ratings, by which it is also
judged, as it would be: nobody knows better that night. Writes the results after each challenger and
goes on where it was stopped; with --minutes nothing new begins after that time.
"""

import argparse
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field
from scipy.stats import binomtest

from benchmarks import plans
from benchmarks.nights.plan import Plan, read_plan
from engine.config import Section
from engine.errors import ConfigError
from jobs.exit_code import exit_code

if TYPE_CHECKING:
    from benchmarks.nights.days import Day
    from benchmarks.nights.replay import Arm, Ground
    from jobs.nightly_update import Challenge

ARM = "nights"
EQUAL = "equal"


class VerdictsPlan(Section):
    """Who is judged."""

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


def read_verdicts_plan(path: str) -> VerdictsPlan:
    """Read a plan; raise ConfigError that names what is wrong."""
    plan = plans.read(path, VerdictsPlan)
    wrong = sorted(set(plan.poisoned) - {"flip", "draw"})
    if wrong:
        raise ConfigError(f"plan {path!r}: poisoned: {wrong[0]!r} is neither 'flip' nor 'draw'")
    nights = read_plan(plan.nights)
    if ARM not in nights.arms or plan.night > nights.nights:
        raise ConfigError(
            f"plan {path!r}: {plan.nights} has no night {plan.night} of an arm {ARM!r}"
        )
    return plan


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge; return the exit code: 3 if the time was up before the last challenger."""
    parser = argparse.ArgumentParser(description="Judge challengers of one night.")
    parser.add_argument("--plan", required=True, help="YAML file of challengers")
    parser.add_argument("--json", required=True, help="file of the results")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after")
    options = parser.parse_args(arguments)
    return exit_code(lambda: 3 if run(options) else 0)


def run(options: argparse.Namespace) -> int:
    """Judge every challenger that is missing; return how many are left."""
    from benchmarks.race import circumstances  # --help needs neither torch nor Ray
    from engine import storage
    from jobs.start import configure_logging, start_ray

    end_s = time.monotonic() + 60 * options.minutes
    plan = read_verdicts_plan(options.plan)
    nights = read_plan(plan.nights)
    source = {"command": " ".join(["python -m benchmarks.nights.verdicts", *sys.argv[1:]]),
              **circumstances()}
    asked = {"plan": plan.settings(), "nights": nights.settings()}
    before = storage.read_json(options.json) if storage.exists(options.json) else {}
    is_same = {name: before.get(name) for name in asked} == asked
    trials: list[dict[str, Any]] = before["trials"] if is_same else []
    done = [{name: each[name] for name in ("how", "share", "seed")} for each in trials]
    missing = [each for each in plan.trials() if each not in done]
    if missing:
        configure_logging()
        logging.getLogger("benchmarks").setLevel(logging.INFO)
        start_ray()
        night = SameNight.prepare(plan, nights)
    while missing and time.monotonic() < end_s:
        trial = missing.pop(0)
        trials.append({**trial, **night.judge(trial), "commit": source["commit"]})
        storage.write_json(
            options.json, {**source, **asked, "trials": trials, "rates": rates_of(trials)}
        )
        print(line_of(trials[-1]), flush=True)
    for rate in rates_of(trials):
        print(rate_line(rate))
    return len(missing)


class SameNight:
    """One night, to be spent again and again from the same release."""

    def __init__(
        self, ground: "Ground", arm: "Arm", parent_id: str, day: "Day", pending: Sequence[str]
    ) -> None:
        """`pending`: folders of the nights before that were held, which it learns, too."""
        self._ground, self._arm, self._parent_id, self._day = ground, arm, parent_id, day
        self._pending = list(pending)
        self._rivals: dict[int, str] = {}

    @classmethod
    def prepare(cls, plan: VerdictsPlan, nights: Plan) -> "SameNight":
        """Train the first release and spend the nights before."""
        from benchmarks.nights.replay import Arm, Ground

        ground = Ground.prepare(nights)
        arm, live, pending = Arm(ground, ARM), ground.base_id, list[str]()
        for number in range(1, plan.night):
            spent = arm.night(number)
            live = spent["live"]
            pending = [] if spent["kind"] == "promoted" else [*pending, ground.days[number].folder]
        return cls(ground, arm, live, ground.days[plan.night], pending)

    def judge(self, trial: Mapping[str, Any]) -> dict[str, Any]:
        """Return what was decided of a challenger, and why."""
        from benchmarks.nights.poison import poison_day

        seed, poisoned = int(trial["seed"]), {}
        if trial["how"] == EQUAL:
            made = self._spend(self._day.folder, seed, self._rival(seed - 1))
            self._rivals[seed] = made.release_id or ""
        else:
            day = poison_day(
                self._ground.root, self._ground.cut, self._day.folder, trial["how"],
                trial["share"], seed,
            )
            made, poisoned = self._spend(day.uri, seed), dict(day.facts)
        detail = made.detail()
        return {
            "release_id": made.release_id, "verdict": made.decision.verdict.value,
            "reasons": list(made.decision.reasons), **poisoned,
            **{name: detail[name] for name in ("difference", "old")},
        }

    def _rival(self, seed: int) -> str:
        """Return the release that learned the night with a seed."""
        if seed not in self._rivals:
            self._rivals[seed] = self._spend(self._day.folder, seed).release_id or ""
        return self._rivals[seed]

    def _spend(self, folder: str, more_seed: int, rival_id: str | None = None) -> "Challenge":
        from engine.state.nights import Entry, EntryKind
        from jobs.nightly_update import challenge

        registry, config = self._arm.registry, self._arm.config
        run = config.run.model_copy(update={"seed": config.run.seed + more_seed})
        opened = Entry(
            EntryKind.OPENED, self._parent_id, since_s=0, until_s=self._day.end_s,
            detail={"registry": registry.root, "events": [*self._pending, folder]},
        )
        config = config.model_copy(update={"run": run})
        return challenge(registry, config, opened, rival_id=rival_id)


def rates_of(trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the share that was promoted of each kind of challenger, with an exact 95% interval for
    this night.
    """
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
