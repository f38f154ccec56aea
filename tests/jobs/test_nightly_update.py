"""Nights on a tiny model: what is promoted, what is held, and how one that was stopped ends."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from benchmarks.live import copy_release
from engine import storage
from engine.config import EngineConfig
from engine.data.splits import DAY_S
from engine.errors import ChecksumError, ConfigError, NightRunningError, ReleaseError
from engine.releases.promotion import Decision, Verdict
from engine.releases.registry import Registry
from engine.stages import judgement
from engine.state import histories, nights
from engine.state.database import open_database
from engine.state.leases import leased
from engine.state.nights import Entry, EntryKind
from jobs import nightly_update
from jobs.nightly_update import Challenge, decide_live
from tests.jobs.nights import LENIENT, World


@pytest.mark.slow
def test_a_night_that_is_held_leaves_the_live_release_and_the_watermark(
    known_night: World, tmp_path: Path
) -> None:
    strict = {**LENIENT, "loss_margin": 0.0, "auc_margin": 0.0}
    world = known_night.copy(tmp_path / "world", promotion=strict)
    held = world.night(1)
    assert held.kind is EntryKind.HELD
    assert held.release_id is not None
    assert any("log_loss" in reason for reason in held.reasons)
    assert world.live() == world.base_id
    registry, database = Registry(world.config.run.registry), open_database(
        str(world.config.run.state)
    )
    day = world.days[2]
    again = nightly_update.open_night(registry, database, day.end_s, [day.folder])
    database.dispose()
    assert (again.since_s, again.parent_id) == (0, world.base_id)
    assert again.detail["events"] == [each.folder for each in world.days[1:3]]


@pytest.mark.slow
def test_a_night_is_also_judged_by_the_first_rows_that_judged(
    known_night: World, tmp_path: Path
) -> None:
    world = known_night.copy(
        tmp_path / "world", judge_days=6, old_days=6, promotion={**LENIENT, "min_slice_rows": 1}
    )
    ended = world.night(1)
    assert ended.kind is EntryKind.PROMOTED
    new, old = (storage.read_json(storage.join(ended.detail[name], "report.json"))
                for name in ("report", "old_report"))
    roles = Registry(world.config.run.registry).read_manifest(world.live()).facts.roles
    assert roles is not None
    assert old["exam"]["start_s"] == roles["since_s"]
    assert old["exam"]["end_s"] == roles["since_s"] + 6 * DAY_S <= new["exam"]["start_s"]
    assert new["exam"]["end_s"] == world.days[1].end_s
    assert old["releases"][0]["release_id"] == ended.release_id
    assert " ".join(ended.reasons).count("'the old panel'") == 2
    assert ended.detail["old"]["crm_calibrated"]["num_rows"] == old["exam"]["rows"] > 0


@pytest.mark.slow
def test_a_night_that_was_stopped_ends_in_the_same_release(
    known_night: World, one_night: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, [_, whole] = known_night, one_night.ledger()

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(judgement, "judge", stop)
        with pytest.raises(KeyboardInterrupt):
            world.night(1)
    assert world.live() == world.base_id
    record = nights.append

    def stop_at_the_end(engine: Engine, entry: Entry) -> Entry:
        return stop() if entry.kind is EntryKind.PROMOTED else record(engine, entry)

    day = world.days[2]         # whoever calls again names other bounds: the night keeps its own
    with monkeypatch.context() as patch:
        patch.setattr(nights, "append", stop_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            nightly_update.run(world.config, until_s=day.end_s, events=[day.folder])
    assert world.live() == whole.release_id         # and the ledger does not know it yet
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


def test_a_corrupted_live_release_ends_the_night_and_the_ledger_says_why(world: World) -> None:
    folder = Registry(world.config.run.registry).folder(world.base_id)
    storage.write_bytes(f"{folder}/bank/bank.safetensors", b"nothing")
    with pytest.raises(ChecksumError, match=r"bank\.safetensors"):
        world.night(1)
    [_, failed] = world.ledger()
    assert failed.kind is EntryKind.FAILED
    assert "bank.safetensors" in failed.reasons[0]
    assert world.live() == world.base_id


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder with 10 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("nobody but root may mount")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_fails_the_night_and_the_next_one_makes_the_same_release(
    known_night: World, one_night: World, small_disk: Path
) -> None:
    [_, whole] = one_night.ledger()
    registry = shutil.copytree(known_night.config.run.registry, small_disk / "releases")
    run = known_night.config.run.model_copy(update={"registry": str(registry)})
    world = replace(known_night, config=known_night.config.model_copy(update={"run": run}))
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))
    with pytest.raises(OSError, match="No space left"):
        world.night(1)
    assert world.live() == world.base_id
    assert world.ledger()[-1].kind is EntryKind.FAILED
    filler.unlink()
    ended = world.night(1)
    assert (ended.kind, ended.release_id) == (EntryKind.PROMOTED, whole.release_id)
    Registry(world.config.run.registry).verify(world.live())


def test_a_clock_that_jumped_back_teaches_nothing_twice(
    one_night: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = one_night.copy(tmp_path / "world")
    end_s = world.days[1].end_s
    monkeypatch.setattr(histories, "newest_bound", lambda: end_s - 3600)
    held = nightly_update.run(world.config)
    assert (held.kind, held.reasons) == (EntryKind.HELD, ("no event came in",))
    assert (held.since_s, held.until_s) == (end_s, end_s)
    with pytest.raises(ConfigError, match="has learned"):
        nightly_update.run(world.config, until_s=end_s - 3600)


def test_two_nights_never_run_at_once(world: World) -> None:
    database = open_database(str(world.config.run.state))
    with leased(database, "nights", "he"), pytest.raises(NightRunningError, match="by 'he'"):
        world.night(1)
    database.dispose()
    assert not world.ledger()


def test_nothing_is_promoted_where_another_release_became_live_meanwhile(world: World) -> None:
    registry = Registry(world.config.run.registry)
    for name in ("challenger", "other"):
        copy_release(registry, world.base_id, registry, name)
    made = Challenge("challenger", Decision(Verdict.PROMOTE, ("better",)), [])
    registry.promote("other")
    with pytest.raises(ReleaseError, match="'other' became live"):
        decide_live(registry, world.base_id, made)
    assert world.live() == "other"
    registry.promote(world.base_id)
    assert decide_live(registry, world.base_id, made) is EntryKind.PROMOTED
    assert world.live() == "challenger"


def test_a_night_goes_on_with_the_model_of_its_parent(world: World) -> None:
    values = world.config.settings()
    values["bank"]["rank"] = 3
    with pytest.raises(ConfigError, match="bank is"):
        nightly_update.run(EngineConfig.model_validate(values), until_s=world.days[1].end_s)
    values = world.config.settings()
    values["run"]["root"] += "-elsewhere"
    with pytest.raises(ReleaseError, match=r"run\.root"):
        nightly_update.run(EngineConfig.model_validate(values), until_s=world.days[1].end_s)


def test_a_night_needs_a_ledger(world: World) -> None:
    values = world.config.settings()
    values["run"]["state"] = None
    with pytest.raises(ConfigError, match=r"run\.state"):
        nightly_update.run(EngineConfig.model_validate(values))
