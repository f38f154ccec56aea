"""A user of whom a whole night knew leaves: nothing that nights write names them any more."""

from pathlib import Path

import pytest

from engine import storage
from engine.data.layers import layer_names, read_histories
from engine.data.schema import part_name
from engine.releases.registry import Registry
from engine.stages.parent import Parent
from engine.state.database import open_database
from engine.state.deletions import delete_user
from engine.state.nights import EntryKind
from jobs import forget
from tests.jobs.nights import NEW_USER, World
from tests.night_world import files_that_name


@pytest.mark.slow
def test_a_second_night_goes_on_from_the_first_without_a_user_who_left_in_between(
    one_night: World, tmp_path: Path
) -> None:
    world = one_night.copy(tmp_path / "world", keep_layers=1, keep_releases=1)
    config, registry = world.config, Registry(world.config.run.registry)
    [_, one] = world.ledger()
    assert one.kind is EntryKind.PROMOTED, one.reasons
    assert world.live() == one.release_id != world.base_id
    named = files_that_name(str(world.folder), NEW_USER)
    assert {name.partition("-")[0] for name in named} >= {
        f"run/{kind}" for kind in ("interactions", "histories", "slates")
    }
    facts = one.detail["facts"]["histories"]
    assert (facts["future_events"], facts["late_events"]) == (1, 1)     # of 2100, and of 1970
    assert facts["longest"] > 900_000                                   # a machine's
    assert len(layer_names(histories_of(world, world.live()))) == 1     # the base
    database = open_database(str(config.run.state))
    delete_user(database, NEW_USER)
    database.dispose()

    two = world.night(2)
    assert (two.kind, two.parent_id) == (EntryKind.PROMOTED, one.release_id)
    assert [entry.kind for entry in world.ledger()] == [EntryKind.OPENED, EntryKind.PROMOTED] * 2
    assert two.since_s == world.days[1].end_s
    live = str(two.release_id)
    manifest = registry.verify(live)
    assert manifest.facts.parent_id == one.release_id
    assert manifest.facts.roles == registry.verify(str(one.release_id)).facts.roles
    assert two.detail["facts"]["bank"]["moved"]["bank_b"] > 0
    page = (world.folder / "run/nights.html").read_text()
    assert page.count("<h2") == 2
    assert "img alt" in page

    histories = histories_of(world, live)
    for number in range(config.histories.num_partitions):
        assert NEW_USER not in read_histories(histories, number)["user_id"].to_pylist()
    assert layer_names(histories) == []
    assert files_that_name(registry.folder(live), NEW_USER) == []
    named = files_that_name(config.run.root, NEW_USER)              # of the release before
    assert {name.partition("-")[0] for name in named} <= {"histories", "crm"}
    assert world.base_id not in registry.list()

    storage.write_json(f"{registry.root}/live.json", {"release_id": live, "previous_id": None})
    forget.run(config)
    assert files_that_name(config.run.root, NEW_USER) == []
    assert files_that_name(registry.root, NEW_USER) == []
    assert registry.list() == [live]
    Parent.read(registry, live, config.run.root, config)
    assert storage.exists(f"{histories}/{part_name('histories', 0)}")
    assert storage.exists(f"{two.detail['report']}/report.json")


def histories_of(world: World, release_id: str) -> str:
    """Return the folder of the histories that a release was made of."""
    inputs = Registry(world.config.run.registry).read_manifest(release_id).facts.inputs
    return f"{world.config.run.root}/histories-{inputs['histories']}"
