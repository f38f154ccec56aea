"""A first release of a tiny model, and days after it."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.nights.days import Day, cut_days, days_of
from engine import storage
from engine.config import EngineConfig
from engine.releases.registry import Registry
from engine.stages.collected import source_of
from engine.stages.interactions import import_data
from engine.state.database import open_database
from engine.state.nights import Entry, entries
from jobs import nightly_update, train_reclora
from tests.generated import write_recbole

LENIENT = {"loss_margin": 5.0, "auc_margin": 1.0, "slice_loss_margin": 5.0,
           "max_calibration_error": 1.0, "min_users": 1}
NEW_USER, MACHINE = "came-after-the-base", "a-machine"
"""Of whom no first release knows; the second sends a million events on the first day."""
NEW_ITEM = "never-seen"


@dataclass(frozen=True)
class World:
    """A first release, and the days after it."""

    folder: Path
    config: EngineConfig
    days: list[Day]
    base_id: str

    def copy(self, folder: Path, outputs_of: "World | None" = None, **night: Any) -> "World":
        """Return a world where all is as in this one; whatever happens there stays there.

        outputs_of: a world that is ahead; a night finds what its stages write, and is soon done.
        """
        shutil.copytree(self.folder, folder)
        if outputs_of is not None:
            shutil.copytree(outputs_of.folder / "run", folder / "run", dirs_exist_ok=True)
        values = self.config.settings()
        values["run"] |= {
            "root": str(folder / "run"), "registry": str(folder / "releases"),
            "state": f"sqlite:///{folder / 'state.db'}",
        }
        values["night"] |= night
        config = EngineConfig.model_validate(values)
        return World(folder, config, self.days, self.base_id)

    def night(self, number: int) -> Entry:
        """Spend the night of a day."""
        day = self.days[number]
        return nightly_update.run(self.config, until_s=day.end_s, events=[day.folder])

    def live(self) -> str:
        return Registry(self.config.run.registry).live().release_id

    def ledger(self) -> list[Entry]:
        database = open_database(str(self.config.run.state))
        try:
            return entries(database)
        finally:
            database.dispose()


def first_world(folder: Path, values: dict[str, Any]) -> World:
    """Train a first release, by these settings, on 60% of generated ratings."""
    values["source"] = {"path": write_recbole(folder / "data", users=60, items=80, events=1800)}
    values["run"]["state"] = None
    values["night"] = {
        "max_slates": 8, "judge_rows": 80, "judge_days": 40, "min_tune_rows": 10,
        "roles": {"judge": 0.3, "tune": 0.1, "bank": 0.25}, "promotion": LENIENT,
    }
    config = EngineConfig.model_validate(values)
    interactions = import_data(str(folder / "whole"), config)
    days = days_of(cut_days(str(folder / "whole"), interactions, [0.6, 0.75, 0.9, 1.0]))
    most_active = _most_active_user(days[1].folder)
    for number, day in enumerate(days[1:], start=1):
        days[number] = replace(day, folder=_rename_user(day.folder, most_active, NEW_USER))
    _add_events(days[1], odd_events(days[1]))
    config = config.model_copy(update={"source": source_of(config.source, days[0].folder)})
    return World(folder, config, days, train_reclora.run(config).release_id)


def _most_active_user(folder: str) -> str:
    users = pa.concat_tables(
        storage.read_table(str(path), ["user_id"])
        for path in Path(folder, "interactions").iterdir()
    )["user_id"].value_counts().to_pylist()
    return str(max(users, key=lambda each: each["counts"])["values"])


def _rename_user(folder: str, old: str, new: str) -> str:
    """Copy a day in which a user has another name; return the copy."""
    copy = shutil.copytree(folder, f"{folder}-renamed")
    for path in [Path(copy, "users.parquet"), *Path(copy, "interactions").iterdir()]:
        table = storage.read_table(str(path))
        names = pc.if_else(pc.equal(table["user_id"], old), new, table["user_id"])
        storage.write_table(str(path), table.set_column(
            table.schema.get_field_index("user_id"), "user_id", names
        ))
    return copy


def odd_events(day: Day, number: int = 1_000_000) -> pa.Table:
    """Return what must spoil no night: a machine's events, an unknown item, times out of bounds."""
    rng = np.random.default_rng(0)
    some = storage.read_table(storage.join(day.folder, "items.parquet"))["item_id"].to_pylist()
    span_s = day.end_s - day.start_s
    ratings = rng.integers(1, 6, number + 3)
    return pa.table({
        "user_id": [*[MACHINE] * number, *[NEW_USER] * 3],
        "item_id": [*np.array(some)[rng.integers(0, len(some), number)], NEW_ITEM, *some[:2]],
        "timestamp": [
            *(day.start_s + np.arange(number) * span_s // number), day.start_s, 1, 4_102_444_800,
        ],
        "rating": ratings.astype(np.float32), "label": (ratings >= 4).astype(np.int8),
    })


def _add_events(day: Day, events: pa.Table) -> None:
    uri = storage.join(day.folder, "interactions/part-00000.parquet")
    table = storage.read_table(uri)
    storage.write_table(uri, pa.concat_tables([table, events.cast(table.schema)]))
