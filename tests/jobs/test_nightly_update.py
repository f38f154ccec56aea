"""Nights on a tiny model: what is promoted, what is held, and how one that was stopped ends."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.nights.days import Day, cut_days
from engine import storage
from engine.config import EngineConfig, load_config
from engine.data.layers import layer_names
from engine.errors import ConfigError
from engine.releases.registry import Registry
from engine.stages import judgement
from engine.stages.collected import source_of
from engine.stages.interactions import import_data
from engine.state.database import open_database
from engine.state.nights import Entry, EntryKind, entries
from jobs import nightly_update, train_reclora
from tests.generated import write_recbole
from tests.jobs.conftest import tiny_settings, write_config
from tests.tiny_llama import tiny_base

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
        """Spend a night."""
        return self.nights(number, number)

    def nights(self, first: int, last: int) -> Entry:
        """Spend one night on several days."""
        days = self.days[first : last + 1]
        return nightly_update.run(
            self.config, until_s=days[-1].end_s, events=[day.folder for day in days]
        )

    def live(self) -> str:
        return Registry(self.config.run.registry).live().release_id

    def ledger(self) -> list[Entry]:
        database = open_database(str(self.config.run.state))
        try:
            return entries(database)
        finally:
            database.dispose()


@pytest.fixture(scope="session")
def first(ray_local: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Return a world whose first release learned 60% of the events."""
    folder = tmp_path_factory.mktemp("nights")
    values = tiny_settings(folder, tiny_base(folder / "base").settings())
    values["source"] = {"path": write_recbole(folder / "data", users=60, items=80, events=1800)}
    values["run"]["state"] = None
    values["night"] = {
        "max_slates": 8, "judge_rows": 80, "judge_days": 40, "min_tune_rows": 10,
        "roles": {"judge": 0.3, "tune": 0.1, "bank": 0.25}, "promotion": LENIENT,
    }
    config = load_config(str(write_config(folder, values)))
    interactions = import_data(str(folder / "whole"), config)
    days = cut_days(str(folder / "whole"), interactions, [0.6, 0.75, 0.9, 1.0])
    config = config.model_copy(update={"source": source_of(config.source, days[0].folder)})
    outcome = train_reclora.run(config)
    return World(folder, config, days, outcome.release_id)


@pytest.fixture
def world(first: World, tmp_path: Path) -> World:
    """Return the world before its first night."""
    return first.copy(tmp_path / "world")


@pytest.mark.slow
def test_two_nights_go_on_from_one_another_and_the_ledger_knows_how(world: World) -> None:
    one = world.night(1)
    assert one.kind is EntryKind.PROMOTED, one.reasons
    assert world.live() == one.release_id != world.base_id
    two = world.night(2)
    assert (two.kind, two.parent_id) == (EntryKind.PROMOTED, one.release_id)
    assert [entry.kind for entry in world.ledger()] == [
        EntryKind.OPENED, EntryKind.PROMOTED, EntryKind.OPENED, EntryKind.PROMOTED,
    ]
    assert two.since_s == world.days[1].end_s
    registry = Registry(world.config.run.registry)
    manifest = registry.verify(str(two.release_id))
    assert manifest.facts.parent_id == one.release_id
    assert manifest.facts.roles == registry.verify(str(one.release_id)).facts.roles
    histories = f"{world.config.run.root}/histories-{manifest.facts.inputs['histories']}"
    assert len(layer_names(histories)) == 2         # the day before, and the base
    assert two.detail["facts"]["bank"]["moved"]["bank_b"] > 0


@pytest.mark.slow
def test_a_night_that_is_held_leaves_the_live_release_and_the_watermark(first: World,
                                                                       tmp_path: Path) -> None:
    strict = {**LENIENT, "loss_margin": 0.0, "auc_margin": 0.0}
    world = first.copy(tmp_path / "world", promotion=strict)
    held = world.night(1)
    assert held.kind is EntryKind.HELD
    assert held.release_id is not None
    assert any("log_loss" in reason for reason in held.reasons)
    assert world.live() == world.base_id
    again = world.nights(1, 2)
    assert (again.since_s, again.parent_id) == (0, world.base_id)
    assert again.detail["facts"]["histories"]["events"] == world.days[2].events
    assert again.detail["facts"]["slates"]["crm_rows"] > held.detail["facts"]["slates"]["crm_rows"]


@pytest.mark.slow
def test_a_night_that_was_stopped_ends_in_the_same_release(
    world: World, first: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = first.copy(tmp_path / "whole").night(1)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(judgement, "judge", stop)
        with pytest.raises(KeyboardInterrupt):
            world.night(1)
    assert world.live() == world.base_id
    day = world.days[2]         # whoever calls again names other bounds: the night keeps its own
    ended = nightly_update.run(world.config, until_s=day.end_s, events=[day.folder])
    assert ended.kind is EntryKind.PROMOTED
    assert (ended.until_s, ended.release_id) == (whole.until_s, whole.release_id)
    assert [entry.kind for entry in world.ledger()] == [EntryKind.OPENED, EntryKind.PROMOTED]


@pytest.mark.slow
def test_a_day_without_events_is_held(world: World, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    for name in ("interactions/part-00000", "items", "users"):
        table = storage.read_table(storage.join(world.days[1].folder, f"{name}.parquet"))
        storage.write_table(str(empty / f"{name}.parquet"), table.slice(0, 0))
    ended = nightly_update.run(
        world.config, until_s=world.days[1].end_s, events=[str(empty)]
    )
    assert (ended.kind, ended.reasons) == (EntryKind.HELD, ("no event came in",))


def test_a_night_needs_a_ledger(world: World) -> None:
    values = world.config.settings()
    values["run"]["state"] = None
    with pytest.raises(ConfigError, match=r"run\.state"):
        nightly_update.run(EngineConfig.model_validate(values))
