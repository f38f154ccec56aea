"""A first release of a tiny model, and days after it."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.nights.days import Day, cut_days
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


@dataclass(frozen=True)
class World:
    """A first release, and the days after it."""

    folder: Path
    config: EngineConfig
    days: list[Day]
    base_id: str

    def copy(self, folder: Path, **night: Any) -> "World":
        """Return the world before its first night, as if nothing had happened in another one."""
        shutil.copytree(self.folder, folder)
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
    days = cut_days(str(folder / "whole"), interactions, [0.6, 0.75, 0.9, 1.0])
    config = config.model_copy(update={"source": source_of(config.source, days[0].folder)})
    return World(folder, config, days, train_reclora.run(config).release_id)
