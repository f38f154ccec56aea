"""The CRM through Ray: no leak over the cut, world sizes, kill -9, scores equal to the scorer's."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import storage
from engine.artifacts import Artifact
from engine.data.profiles import Profiles
from engine.data.schema import histories_of
from engine.data.splits import read_timeline
from engine.errors import ConfigError, DataError
from engine.models.crm_scorer import CRMScorer
from engine.stages.crm import make_examples, read_maps, score_crm, train_crm
from engine.stages.trainer import fit
from engine.training.crm_loop import crm_loop, example_uri, read_rows
from engine.training.session import Session
from engine.types import Window
from tests.crm_run import World


@pytest.fixture(scope="module")
def world(ray_local: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("crm"))


@pytest.fixture(scope="module")
def crm(world: World) -> Artifact:
    return train_crm(world.run, world.config(), *world.inputs())


def weights_of(folder: str, name: str) -> storage.Tensors:
    return storage.read_tensors(storage.join(folder, name))


def killed_loop(settings: dict[str, Any], session: Session) -> None:
    """The CRM's loop; its process is killed once, after its first checkpoint."""
    crm_loop({key: value for key, value in settings.items() if key != "flag"},
             _Killer(session, Path(settings["flag"])))


def refusing_loop(settings: dict[str, Any], session: Session) -> None:
    """Refuse its input."""
    raise DataError("the third row is odd")


class _Killer:
    def __init__(self, session: Session, flag: Path) -> None:
        self.world_rank, self.world_size = session.world_rank, session.world_size
        self.resume_folder, self.progress = session.resume_folder, session.progress
        self._session, self._flag = session, flag

    def report(self, metrics: dict[str, float], folder: Path | None, name: str | None) -> None:
        self._session.report(metrics, folder, name)
        if not self._flag.exists():
            self._flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def test_examples_hold_nothing_from_the_cut_on(world: World) -> None:
    examples = make_examples(world.run, world.config(), *world.inputs(), windows=(Window.CRM,))
    cut_s = read_timeline(world.histories.path("timeline.json")).t0_s
    assert examples.facts["cut_s"] == cut_s
    events, users, rows = np.zeros(len(world.catalogue)), set(), 0
    for partition in range(3):
        table = storage.read_table(world.histories.path(f"histories/part-{partition:05d}.parquet"))
        before = 0
        for user_id, history in histories_of(table).items():
            past = history.before(cut_s)
            np.add.at(events, past.items, 1)
            before += len(past)
            users |= {user_id} if len(past) else set()
        kept = read_rows(example_uri(examples.uri, partition))
        assert len(kept.event_items_E) == before
        assert len(kept) == before                                  # one row for each rated event
        rows += len(kept)
    maps = read_maps(examples.uri)
    assert set(maps.user_ids) == users
    known = [world.catalogue.index_of(item_id) for item_id in maps.item_ids]
    np.testing.assert_array_equal(maps.counts_K3[1:, 0], events[known])
    assert events.sum() == rows == examples.facts["rows"]


def test_the_whole_training_window_reaches_to_t1(world: World) -> None:
    windows = (Window.CRM, Window.BANK)
    examples = make_examples(world.run, world.config(), *world.inputs(), windows=windows)
    timeline = read_timeline(world.histories.path("timeline.json"))
    assert examples.facts["cut_s"] == timeline.t1_s
    facts = world.histories.facts["windows"]
    assert examples.facts["rows"] == facts["crm"] + facts["bank"]


def test_a_finished_training_leaves_nothing_to_go_on_from(world: World, crm: Artifact) -> None:
    assert not (Path(world.run) / "training" / f"crm-{crm.key}").exists()


def test_resources_do_not_name_a_training(world: World, crm: Artifact) -> None:
    other = train_crm(world.run, world.config(max_failures=5), *world.inputs())
    assert other.key == crm.key


def test_an_error_of_a_worker_arrives_as_itself(world: World, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the third row is odd"):
        fit(refusing_loop, {}, artifact=str(tmp_path / "refused"), num_workers=1,
            threads_per_worker=1, use_gpu=False, max_failures=0)


def test_other_windows_are_refused(world: World) -> None:
    with pytest.raises(ConfigError, match=r"\(CRM,\) or \(CRM, BANK\)"):
        train_crm(world.run, world.config(), *world.inputs(), windows=(Window.TEST,))


def test_more_lanes_than_partitions_are_refused(world: World) -> None:
    with pytest.raises(ConfigError, match=r"crm.lanes 4 .*num_partitions is 3"):
        train_crm(world.run, world.config(lanes=4), *world.inputs())


def test_scores_are_those_of_the_scorer_that_serves(world: World, crm: Artifact) -> None:
    config = world.config()
    scores = score_crm(world.run, config, *world.inputs(), crm)
    scorer = CRMScorer.load(crm.uri, world.catalogue, world.vectors)
    profiles = Profiles.from_table(
        storage.read_table(world.histories.path("users.parquet")), config.source.user_fields
    )
    seen, windows = 0, set()
    for partition in range(3):
        part = f"part-{partition:05d}.parquet"
        histories = histories_of(storage.read_table(world.histories.path("histories", part)))
        slates = {row["slate_id"]: row for row in
                  storage.read_table(world.slates.path("slates", part)).to_pylist()}
        found = storage.read_table(scores.path("scores", part)).to_pylist()
        assert {row["slate_id"] for row in found} == {
            slate_id for slate_id, slate in slates.items() if slate["window"] != Window.CRM
        }
        for row in found[::5]:
            slate, history = slates[row["slate_id"]], histories[row["user_id"]]
            profile, items = profiles.of(row["user_id"]), np.array(slate["items"])
            output = scorer.score([history.head(slate["history_length"])], [profile], [items])[0]
            close = {"rtol": 1e-4, "atol": 1e-5}
            np.testing.assert_allclose(row["logits"], output.logits_M, **close)
            np.testing.assert_allclose(row["user_state"], output.user_state_D, **close)
            np.testing.assert_allclose(
                np.reshape(row["target_states"], output.target_states_MD.shape),
                output.target_states_MD, **close,
            )
            for item, length, logit in zip(
                items, slate["row_history_lengths"], row["row_logits"], strict=True
            ):
                alone = scorer.score([history.head(length)], [profile], [np.array([item])])[0]
                np.testing.assert_allclose(logit, alone.logits_M[0], **close)
            seen, windows = seen + 1, windows | {row["window"]}
    assert seen > 5
    assert windows == {Window.BANK, Window.VALIDATION, Window.TEST}


EXACT = {"dropout": 0.0, "id_dropout": 0.0, "epochs": 2}
"""Settings under which any number of workers computes the same."""


@pytest.fixture(scope="module")
def exact(world: World) -> Artifact:
    return train_crm(world.run, world.config(**EXACT), *world.inputs(), seed=99)


@pytest.mark.slow
def test_other_settings_and_seed_are_another_model_on_the_same_examples(
    world: World, crm: Artifact, exact: Artifact
) -> None:
    assert exact.uri != crm.uri
    assert exact.manifest()["inputs"] == crm.manifest()["inputs"]
    assert (exact.facts["seed"], crm.facts["seed"]) == (99, 17)
    assert train_crm(world.run, world.config(), *world.inputs()).uri == crm.uri


@pytest.mark.slow
def test_two_workers_give_the_losses_of_one(world: World, exact: Artifact) -> None:
    two = train_crm(
        world.run, world.config(**EXACT, num_workers=2, zero_stage=2), *world.inputs(), seed=99
    )
    losses = [
        [(point["loss"], point["retrieval_loss"]) for point in storage.read_json(
            crm.path("curve.json")
        )]
        for crm in (exact, two)
    ]
    assert losses[0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    expected = weights_of(exact.uri, "crm.safetensors")
    for name, weight in weights_of(two.uri, "crm.safetensors").items():
        if name == "weights.retrieval_item.bias":       # adds one number to all of a user's scores:
            continue                                    # its gradient is rounding alone
        np.testing.assert_allclose(weight, expected[name], rtol=1e-2, atol=1e-3, err_msg=name)


@pytest.mark.slow
def test_a_killed_worker_resumes_as_if_uninterrupted(
    world: World, crm: Artifact, tmp_path: Path
) -> None:
    config = world.config()
    flag = tmp_path / "killed"
    checkpoint = fit(
        killed_loop, {**world.loop_settings(config), "flag": str(flag)},
        artifact=str(tmp_path / "killed"), num_workers=1, threads_per_worker=1, use_gpu=False,
        max_failures=1,
    )
    assert flag.exists()
    expected = weights_of(crm.uri, "crm.safetensors")
    for name, weight in weights_of(checkpoint, "weights.safetensors").items():
        np.testing.assert_allclose(
            weight, expected[f"weights.{name}"], rtol=1e-5, atol=1e-6, err_msg=name
        )
