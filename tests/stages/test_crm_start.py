"""A CRM that goes on from a parent: nothing is lost, roles are kept, a night is a small step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine import storage
from engine.artifacts import Artifact
from engine.config import CRMConfig, RolesConfig
from engine.data.profiles import Profiles
from engine.data.roles import Role, Roles
from engine.data.schema import histories_of
from engine.data.splits import read_timeline
from engine.errors import ConfigError
from engine.models.crm import CRM, CRMShape
from engine.models.crm_scorer import CRMScorer, write_crm
from engine.stages.crm import make_examples, read_maps, train_crm
from engine.stages.crm_start import START, night_settings
from engine.stages.histories import build_histories
from engine.stages.interactions import import_data
from engine.stages.slates import build_slates
from engine.training.crm_loop import crm_loop, example_uri, read_rows
from engine.training.session import LocalSession
from engine.types import Window
from tests.crm_run import World

STANDING_STILL = {"learning_rate": 1e-12}
WINDOWS = (Window.CRM,)


@pytest.fixture(scope="module")
def world(ray_local: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("nights"))


@pytest.fixture(scope="module")
def parent(world: World) -> Artifact:
    """Return a CRM of random weights that knows users and items of the first days."""
    config = world.config(split={"crm": 0.04})
    histories = build_histories(world.run, config, import_data(world.run, config))
    slates = build_slates(world.run, config, histories)
    examples = make_examples(
        world.run, config, histories, slates, world.item_text, windows=WINDOWS
    )
    model = CRM(CRMShape(**examples.facts["shape"]), config.crm)
    generator = torch.Generator().manual_seed(3)
    weights = {
        name: torch.randn(value.shape, generator=generator).numpy() * 0.3
        for name, value in model.state_dict().items()
    }
    uri = storage.join(world.run, "crm-parent")
    write_crm(uri, weights, read_maps(examples.uri), {
        "shape": examples.facts["shape"], "crm": config.crm.settings(),
        "source": config.source.settings(),
    })
    return Artifact("crm", "parent", uri, {})


@pytest.fixture(scope="module")
def still(world: World, parent: Artifact) -> Artifact:
    """Return the CRM of a night that makes no step."""
    return train_crm(world.run, world.config(**STANDING_STILL), *world.inputs(), parent=parent)


def scorer_of(world: World, crm: Artifact) -> CRMScorer:
    return CRMScorer.load(crm.uri, world.catalogue, world.vectors)


def rows_by_id(scorer: CRMScorer) -> dict[str, list[float]]:
    weights = scorer.model.state_dict()
    tables = {
        "user": (scorer.maps.user_ids, weights["user_ids.weight"]),
        "item": (scorer.maps.item_ids, weights["item_ids.weight"]),
    }
    return {
        f"{kind} {each}": rows[row].tolist()
        for kind, (ids, rows) in tables.items() for row, each in enumerate(["", *ids])
    }


def test_a_night_without_steps_knows_what_its_parent_knew(
    world: World, parent: Artifact, still: Artifact
) -> None:
    old, new = scorer_of(world, parent), scorer_of(world, still)
    before, after = rows_by_id(old), rows_by_id(new)
    assert before.keys() < after.keys()
    for name, row in before.items():
        np.testing.assert_allclose(after[name], row, rtol=0, atol=1e-9, err_msg=name)
    for name in after.keys() - before.keys():
        unknown = before["user " if name.startswith("user") else "item "]
        np.testing.assert_allclose(after[name], unknown, rtol=0, atol=1e-9, err_msg=name)
    users = len(new.maps.user_ids) - len(old.maps.user_ids)
    items = len(new.maps.item_ids) - len(old.maps.item_ids)
    assert (still.facts["new_users"], still.facts["new_items"]) == (users, items)
    assert users > 5
    assert items > 5
    assert still.facts["new_values"] > 0
    assert still.facts["state_drift"] < 1e-6
    expected, found = old.model.state_dict(), new.model.state_dict()
    for name in expected.keys() - {f"{kind}.weight" for kind in (
        "user_ids", "item_ids", "user_codes", "item_codes",
    )}:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-9, msg=name)


def test_a_night_without_steps_scores_known_users_and_items_as_its_parent(
    world: World, parent: Artifact, still: Artifact
) -> None:
    """Under the parent's statistics: those of the night have counted more."""
    old, grown = scorer_of(world, parent), scorer_of(world, still)
    events = dict(zip(old.maps.item_ids, old.maps.counts_K3[1:], strict=True))
    counts = np.zeros_like(grown.maps.counts_K3)
    for row, item_id in enumerate(grown.maps.item_ids, start=1):
        counts[row] = events.get(item_id, 0)
    config = world.config()
    space = grown.maps.space(world.catalogue, world.vectors, config.crm, config.source, counts)
    new = CRMScorer(grown.model, grown.maps, space)
    people = Profiles.from_table(
        storage.read_table(world.histories.path("users.parquet")), config.source.user_fields
    )
    table = storage.read_table(world.histories.path("histories/part-00000.parquet"))
    known = set(old.maps.user_ids)
    histories = {user: history for user, history in histories_of(table).items() if user in known}
    items = np.array([world.catalogue.index_of(item_id) for item_id in old.maps.item_ids])
    asked = (
        [history.head(9) for history in histories.values()],
        [people.of(user) for user in histories], [items] * len(histories),
    )
    assert len(histories) > 5
    for found, expected in zip(new.score(*asked), old.score(*asked), strict=True):
        np.testing.assert_allclose(found.logits_M, expected.logits_M, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.user_state_D, expected.user_state_D, rtol=1e-4, atol=1e-5)


def test_without_a_parent_nothing_has_another_name(world: World) -> None:
    plain = make_examples(world.run, world.config(), *world.inputs(), windows=WINDOWS)
    assert plain.manifest()["settings"].keys() == {
        "windows", "max_behaviors", "max_history", "source",
    }
    assert not storage.exists(plain.path(START))


def test_a_parent_of_other_sizes_is_refused(world: World, parent: Artifact) -> None:
    with pytest.raises(ConfigError, match=r"crm.state_dim is 9, the parent's .* 6"):
        train_crm(world.run, world.config(state_dim=9), *world.inputs(), parent=parent)


def test_rows_that_judge_are_never_counted_and_stay_in_histories(
    world: World, parent: Artifact
) -> None:
    timeline = read_timeline(world.histories.path("timeline.json"))
    roles = Roles(RolesConfig(judge=0.5), timeline.start_s + 9 * 86_400)
    examples = make_examples(
        world.run, world.config(), *world.inputs(), windows=WINDOWS, parent=parent, roles=roles
    )
    events, users, seen = np.zeros(len(world.catalogue)), set(), 0
    for partition in range(3):
        part = f"part-{partition:05d}.parquet"
        slates = storage.read_table(world.slates.path("slates", part)).to_pylist()
        asked = {slate["user_id"] for slate in slates if slate["window"] == Window.CRM}
        table = storage.read_table(world.histories.path("histories", part))
        for user_id, history in histories_of(table).items():
            counted = np.isin(roles.of(user_id, history.timestamps_s), (Role.CRM, Role.OLD))
            np.add.at(events, history.items[counted], 1)
            users |= {user_id} if counted.any() else set()
            seen += len(history) * (user_id in asked)
        kept = read_rows(example_uri(examples.uri, partition))
        seen -= len(kept.event_items_E)
    maps = read_maps(examples.uri)
    known = [world.catalogue.index_of(item_id) for item_id in maps.item_ids]
    assert seen == 0                                                # features see every event
    assert 200 < events.sum() < 1000
    np.testing.assert_array_equal(maps.counts_K3[1:, 0], events[known])
    assert events.sum() == maps.counts_K3[:, 0].sum()
    assert set(maps.user_ids) == users
    assert examples.facts["cut_s"] == timeline.end_s + 1


def loop_settings(world: World, parent: Artifact, config: CRMConfig) -> dict[str, Any]:
    examples = make_examples(
        world.run, world.config(), *world.inputs(), windows=WINDOWS, parent=parent
    )
    return {
        "crm": config.settings(), "shape": examples.facts["shape"], "examples": examples.uri,
        "row_counts": examples.facts["row_counts"], "seed": 17, "start": examples.path(START),
    }


class Stopped(Exception):
    """Ends a loop."""


class StoppingSession(LocalSession):
    """Ends the loop after its first checkpoint."""

    def report(self, metrics: dict[str, float], folder: Path | None, name: str | None) -> None:
        super().report(metrics, folder, name)
        raise Stopped


def trained(folder: Path) -> storage.Tensors:
    checkpoint = LocalSession(folder).resume_folder()
    return storage.read_tensors(str(checkpoint / "weights.safetensors"))


def test_a_resumed_night_learns_what_an_uninterrupted_one_does(
    one_process: None, world: World, parent: Artifact, tmp_path: Path
) -> None:
    settings = loop_settings(world, parent, night_settings(world.config(learning_rate=0.1)).crm)
    crm_loop(settings, LocalSession(tmp_path / "whole"))
    with pytest.raises(Stopped):
        crm_loop(settings, StoppingSession(tmp_path / "run"))
    crm_loop(settings, LocalSession(tmp_path / "run"))
    resumed, expected = trained(tmp_path / "run"), trained(tmp_path / "whole")
    start = storage.read_tensors(settings["start"])
    for name, weight in expected.items():
        np.testing.assert_allclose(resumed[name], weight, rtol=1e-5, atol=1e-6, err_msg=name)
    assert np.abs(expected["item_ids.weight"] - start["item_ids.weight"]).max() > 1e-3


def test_rows_without_events_of_the_day_neither_move_nor_shrink(
    one_process: None, world: World, parent: Artifact, tmp_path: Path
) -> None:
    """AdamW's decay would shrink them by the sum of all steps' rates times the decay."""
    config = night_settings(world.config(learning_rate=0.1))
    assert config.crm.epochs == 1
    assert config.crm.learning_rate == pytest.approx(0.01)
    found = {}
    for decay in (config.crm.embedding_weight_decay, 0.01):
        crm = config.crm.model_copy(update={"embedding_weight_decay": decay})
        settings = loop_settings(world, parent, crm)
        settings["row_counts"] = [settings["row_counts"][0], 0, 0]
        crm_loop(settings, LocalSession(tmp_path / str(decay)))
        found[decay] = trained(tmp_path / str(decay))["user_ids.weight"]
    start = storage.read_tensors(settings["start"])["user_ids.weight"]
    rows = read_rows(example_uri(settings["examples"], 0))
    is_absent = ~np.isin(np.arange(len(start)), [0, *rows.users_R])
    assert is_absent.sum() > 5
    assert found[0.0][is_absent].tolist() == start[is_absent].tolist()
    assert np.abs(found[0.0][rows.users_R] - start[rows.users_R]).min() > 0
    shrunk = 1 - found[0.01][is_absent] / start[is_absent]
    steps = -(-len(rows) // (32 // 2))
    assert 0.3 * steps * 1e-4 < shrunk.mean() < steps * 1e-4
