"""A plan's data -> a first release -> its nights, one way or another, measured the day after."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.live import copy_release
from benchmarks.nights.days import Day, cut_days
from benchmarks.nights.plan import Plan
from engine import storage
from engine.artifacts import Artifact
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
    histories: Artifact
    """Of all events: a question about a day sees what was before it."""
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
        days = cut_days(root, interactions, plan.shares())
        histories = build_histories(root, config, interactions)
        outcome = train_reclora.run(_with_source(config, days[0].folder))
        return cls(plan, root, histories, days, outcome.release_id)


def _registry(plan: Plan, name: str) -> str:
    return storage.join(plan.engine_config().run.root, "registries", name)


def _with_source(config: EngineConfig, folder: str) -> EngineConfig:
    return config.model_copy(update={"source": source_of(config.source, folder)})


class Arm:
    """One way to spend the nights: a registry and a ledger of its own."""

    def __init__(self, ground: Ground, name: str) -> None:
        plan = ground.plan
        self._ground, self.name = ground, name
        self._is_frozen = plan.arms[name] is None
        self.config = plan.engine_config({
            **(plan.arms[name] or {}), "run.registry": _registry(plan, name),
            "night.keep_releases": None,        # arms share what they were made of
            "run.state": f"sqlite:///{storage.join(ground.root, name)}.db",
        })
        self._registry = Registry(self.config.run.registry)
        if ground.base_id not in self._registry.list():
            base = Registry(_registry(plan, "base"))
            copy_release(base, ground.base_id, self._registry, ground.base_id)
            self._registry.promote(ground.base_id)

    def night(self, number: int) -> dict[str, Any]:
        """Return what came of a night, which is spent unless the ledger has it."""
        day = self._ground.days[number]
        if self._is_frozen:
            return {"night": number, "kind": "frozen", "events": day.events}
        found = self._ends().get(day.end_s) or nightly_update.run(
            self.config, until_s=day.end_s, events=[day.folder]
        )
        return {
            "night": number, "kind": found.kind.value, "release_id": found.release_id,
            "reasons": list(found.reasons), "stage_seconds": found.detail.get("seconds", ()),
            "training_tokens": found.detail.get("facts", {}).get("bank", {}).get(
                "training_tokens", 0
            ),
            "events": day.events,
        }

    def _ends(self) -> dict[int, Entry]:
        """Return how nights ended, by the end of their day."""
        database = open_database(self.config.run.state or "")
        try:
            return {
                each.until_s: each for each in entries(database)
                if each.kind in (EntryKind.PROMOTED, EntryKind.HELD) and each.until_s is not None
            }
        finally:
            database.dispose()

    def live_after(self, number: int) -> str:
        """Return the release that answers the day after a night."""
        ends, live = self._ends(), self._ground.base_id
        for day in self._ground.days[1 : number + 1]:
            night = ends.get(day.end_s)
            if night is not None and night.kind is EntryKind.PROMOTED and night.release_id:
                live = night.release_id
        return live

    def measure(self, number: int) -> dict[str, Any]:
        """Return what the live release makes of the day after a night, beside the first one."""
        ground, live = self._ground, self.live_after(number)
        day = ground.days[number + 1]
        releases = list(dict.fromkeys([live, ground.base_id]))
        report = compare(
            ground.root, self.config, ground.histories, releases, Period(day.start_s, day.end_s),
            rows=ground.plan.rows,
        )
        found = storage.read_json(report.path("report.json"))
        return {"release_id": live, **_figures(found)}


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
