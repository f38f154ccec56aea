"""A user of whom a whole night knew leaves: nothing that nights write names them any more."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from engine import storage
from engine.data.layers import layer_names, read_histories
from engine.data.schema import part_name
from engine.releases.registry import Registry
from engine.stages.parent import Parent
from engine.state.database import open_database
from engine.state.deletions import delete_user
from engine.state.nights import Entry, EntryKind
from jobs import forget, nightly_update
from tests.jobs.nights import World
from tests.night_world import files_that_name

GONE = "user-who-left"


def rename_user(folder: str, copy: Path, old: str) -> str:
    """Copy a day's folder in which a user has another name."""
    shutil.copytree(folder, copy)
    for path in [copy / "users.parquet", *(copy / "interactions").iterdir()]:
        table = storage.read_table(str(path))
        names = pc.if_else(pc.equal(table["user_id"], old), GONE, table["user_id"])
        storage.write_table(str(path), table.set_column(
            table.schema.get_field_index("user_id"), "user_id", names
        ))
    return str(copy)


def most_active_user(folder: str) -> str:
    users = pa.concat_tables(
        storage.read_table(str(path), ["user_id"])
        for path in Path(folder, "interactions").iterdir()
    )["user_id"].value_counts().to_pylist()
    return str(max(users, key=lambda each: each["counts"])["values"])


@pytest.mark.slow
def test_a_user_who_left_after_a_night_is_in_no_file_once_its_release_is_gone(
    first: World, tmp_path: Path
) -> None:
    world = first.copy(tmp_path / "world", keep_layers=1, keep_releases=1)
    config, registry = world.config, Registry(world.config.run.registry)
    old = most_active_user(world.days[1].folder)

    def night(number: int) -> Entry:
        day = world.days[number]
        folder = rename_user(day.folder, tmp_path / f"day-{number}", old)
        return nightly_update.run(config, until_s=day.end_s, events=[folder])

    assert night(1).kind is EntryKind.PROMOTED
    before = files_that_name(str(world.folder), GONE)
    assert {name.partition("-")[0] for name in before} >= {
        f"run/{kind}" for kind in ("interactions", "histories", "slates")
    }
    database = open_database(str(config.run.state))
    delete_user(database, GONE)
    database.dispose()

    ended = night(2)
    assert ended.kind is EntryKind.PROMOTED
    live = str(ended.release_id)
    inputs = registry.read_manifest(live).facts.inputs
    histories = f"{config.run.root}/histories-{inputs['histories']}"
    for number in range(config.histories.num_partitions):
        assert GONE not in read_histories(histories, number)["user_id"].to_pylist()
    assert layer_names(histories) == []
    assert files_that_name(registry.folder(live), GONE) == []
    named = files_that_name(config.run.root, GONE)              # of the release before
    assert {name.partition("-")[0] for name in named} <= {"histories", "crm"}
    assert world.base_id not in registry.list()

    storage.write_json(f"{registry.root}/live.json", {"release_id": live, "previous_id": None})
    forget.run(config)
    assert files_that_name(config.run.root, GONE) == files_that_name(registry.root, GONE) == []
    assert registry.list() == [live]
    Parent.read(registry, live, config.run.root, config)
    assert storage.exists(f"{histories}/{part_name('histories', 0)}")
    assert storage.exists(f"{ended.detail['report']}/report.json")
