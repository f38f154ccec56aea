"""A plan's data -> a first release -> its nights, one way or another, measured the day after."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.live import copy_release
from benchmarks.nights.days import Day, cut_days, days_of, events_until
from benchmarks.nights.plan import Plan
from engine import storage
from engine.artifacts import Artifact, open_artifact
from engine.config import EngineConfig
from engine.releases.registry import Registry
from engine.stages.collected import source_of
from engine.stages.exam import Period
from engine.stages.histories import build_histories
from engine.stages.interactions import import_data
from engine.stages.judgement import compare
from engine.state.database import open_database
from engine.state.nights import Entry, EntryKind, entries
from jobs import nightly_update, train_reclora

MODELS = ("crm_calibrated", "fused")
METRICS = ("auc", "gauc", "log_loss")


@dataclass(frozen=True, slots=True)
class Ground:
    """What all arms share."""

    plan: Plan
    root: str
    interactions: Artifact
    histories: Artifact
    """Of all events: a question about a day sees what was before it."""
    cut: Artifact
    """Of the days."""
    days: list[Day]
    """The base, each night's day, and the day after the last night."""
    base_id: str
    """The first release, in the registry `base`."""

    @classmethod
    def prepare(cls, plan: Plan) -> "Ground":
        """Import the data, cut the days and train the first release."""
        config = plan.engine_config({"run.registry": _registry(plan, "base"), "run.state": None})
        root = storage.absolute(config.run.root)
        interactions = import_data(root, config)
        cut = cut_days(root, interactions, plan.shares())
        days = days_of(cut)
        histories = build_histories(root, config, interactions)
        outcome = train_reclora.run(_with_source(config, days[0].folder))
        return cls(plan, root, interactions, histories, cut, days, outcome.release_id)


def _registry(plan: Plan, name: str) -> str:
    return storage.join(plan.engine_config().run.root, "registries", name)


def _with_source(config: EngineConfig, folder: str) -> EngineConfig:
    return config.model_copy(update={"source": source_of(config.source, folder)})


class Arm:
    """One way to spend the nights, one after another: `registry` and ledger are its own, by its
    `config`.
    """

    def __init__(self, ground: Ground, name: str) -> None:
        plan = ground.plan
        self._ground, self._way = ground, plan.arms[name]
        self.config = plan.engine_config({
            **self._way.overrides, "run.registry": _registry(plan, name),
            "night.keep_releases": None,        # arms share what they were made of
            "run.state": f"sqlite:///{storage.join(ground.root, name)}.db",
        })
        self.registry = Registry(self.config.run.registry)
        self._live = ground.base_id
        if ground.base_id not in self.registry.list():
            base = Registry(_registry(plan, "base"))
            copy_release(base, ground.base_id, self.registry, ground.base_id)
            self.registry.promote(ground.base_id)

    def night(self, number: int) -> dict[str, Any]:
        """Spend the next night, unless that was done before; return what came of it, and what the
        live release makes of the day after.
        """
        spend = {"nights": self._update, "frozen": self._rest, "whole": self._train}
        found = spend[self._way.kind](number)
        return {
            "night": number, "events": self._ground.days[number].events, **found,
            "live": self._live, "day_after": self._measure(number + 1),
        }

    def _rest(self, _: int) -> dict[str, Any]:
        return {"kind": "frozen"}

    def _update(self, number: int) -> dict[str, Any]:
        day = self._ground.days[number]
        ended = self._ended(day.end_s) or nightly_update.run(
            self.config, until_s=day.end_s, events=[day.folder]
        )
        if ended.kind is EntryKind.PROMOTED and ended.release_id:
            self._live = ended.release_id
        detail = ended.detail
        return {
            "kind": ended.kind.value, "release_id": ended.release_id,
            "reasons": list(ended.reasons), "stage_seconds": detail.get("seconds", []),
            "training_tokens": detail.get("facts", {}).get("bank", {}).get("training_tokens", 0),
        }

    def _ended(self, until_s: int) -> Entry | None:
        """Return how the night of a day ended, if it has."""
        database = open_database(self.config.run.state or "")
        try:
            ends = (EntryKind.PROMOTED, EntryKind.HELD)
            found = [each for each in entries(database)
                     if each.kind in ends and each.until_s == until_s]
        finally:
            database.dispose()
        return found[-1] if found else None

    def _train(self, number: int) -> dict[str, Any]:
        if number % self._way.every:
            return self._rest(number)
        ground = self._ground
        folder = events_until(ground.root, ground.interactions, ground.days[number].end_s)
        config = self.config.model_copy(
            update={"run": self.config.run.model_copy(update={"state": None})}
        )
        self._live = train_reclora.run(_with_source(config, folder)).release_id
        inputs = self.registry.read_manifest(self._live).facts.inputs
        made = [open_artifact(f"{ground.root}/{kind}-{key}", kind) for kind, key in inputs.items()]
        return {
            "kind": "trained", "release_id": self._live,
            "stage_seconds": [[each.kind, each.manifest()["seconds"]] for each in made],
            "training_tokens": sum(each.facts.get("training_tokens", 0) for each in made),
        }

    def _measure(self, number: int) -> dict[str, Any]:
        """Return what the live release makes of a day, beside the first one."""
        ground, day = self._ground, self._ground.days[number]
        releases = list(dict.fromkeys([self._live, ground.base_id]))
        report = compare(
            ground.root, self.config, ground.histories, releases,
            Period(day.start_s, day.end_s), rows=ground.plan.rows,
        )
        return _figures(storage.read_json(report.path("report.json")))


def _figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the main figures of a report: of the sample, of all rows, and the differences."""
    return {
        "sample": _table(report["releases"][0]["tables"], "sample"),
        "all": _table(report["releases"][0]["tables"], "all"),
        "minus_first": report["difference"] and {
            rows: _table(report["difference"]["tables"], rows) for rows in ("sample", "all")
        },
    }


def _table(tables: list[Mapping[str, Any]], rows: str) -> dict[str, Any]:
    [table] = [each for each in tables if each["rows"] == rows and each["slice"] == "all"]
    return {
        "num_rows": table["num_rows"],
        **{model: {metric: table["models"][model][metric] for metric in METRICS}
           for model in MODELS if model in table["models"]},
    }
