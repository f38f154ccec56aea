"""CRM folders and the scorer that serving uses."""

from pathlib import Path

import numpy as np
import pytest

from engine import storage
from engine.errors import ArtifactError
from engine.models.crm_maps import CRMMaps, pack_texts, unpack_texts
from engine.models.crm_scorer import CRMScorer, write_crm
from engine.types import CRMOutput, History, Profile
from tests import crm_world as world

FACTS = {
    "shape": {name: getattr(world.shape(world.maps()), name)
              for name in world.shape(world.maps()).__slots__},
    "crm": world.CRM_CONFIG.settings(), "source": world.SOURCE.settings(),
}


def write(folder: Path) -> str:
    maps = world.maps()
    weights = {name: value.numpy() for name, value in world.model(maps).state_dict().items()}
    write_crm(str(folder), weights, maps, FACTS)
    return str(folder)


@pytest.fixture
def scorer(tmp_path: Path) -> CRMScorer:
    return CRMScorer.load(write(tmp_path), world.catalogue(), world.vectors())


def request(length: int, items: list[int], user: str = "u2") -> tuple[History, Profile, list[int]]:
    return world.history(length, length), world.profile(user), items


REQUESTS = [
    request(0, [1, 2]), request(3, [4]), request(30, [5, 6, 7]), request(9, [3], user="stranger"),
]


def score(scorer: CRMScorer, requests: list[tuple[History, Profile, list[int]]]) -> list[CRMOutput]:
    histories, profiles, candidates = zip(*requests, strict=True)
    return scorer.score(histories, profiles, [np.array(items, np.int32) for items in candidates])


def assert_close(found: CRMOutput, expected: CRMOutput) -> None:
    for name in ("logits_M", "user_state_D", "target_states_MD", "attention_MS"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5, err_msg=name
        )
    np.testing.assert_array_equal(found.behaviors_MS, expected.behaviors_MS)


def test_a_batch_of_users_scores_like_one_by_one_in_any_order(scorer: CRMScorer) -> None:
    together = score(scorer, REQUESTS)
    reverse = score(scorer, REQUESTS[::-1])[::-1]
    for found, back, single in zip(together, reverse, REQUESTS, strict=True):
        expected = score(scorer, [single])[0]
        assert_close(found, expected)
        assert_close(back, expected)


def test_outputs_have_the_declared_shapes(scorer: CRMScorer) -> None:
    output = score(scorer, REQUESTS)[2]
    config = world.CRM_CONFIG
    assert output.logits_M.shape == (3,)
    assert output.user_state_D.shape == (config.state_dim,)
    assert output.target_states_MD.shape == (3, config.hidden_dims[-1])
    assert output.behaviors_MS.shape == output.attention_MS.shape == (3, config.max_behaviors)
    assert output.behaviors_MS.max() < 30
    assert output.behaviors_MS.min() >= 30 - config.max_history
    assert (output.attention_MS.sum(axis=1) < 1).all()
    for name in ("logits_M", "user_state_D", "target_states_MD", "attention_MS"):
        assert getattr(output, name).dtype == np.float32


def test_no_candidates_still_give_a_user_state(scorer: CRMScorer) -> None:
    empty, full = score(scorer, [request(3, []), request(3, [4])])
    assert empty.logits_M.shape == (0,)
    assert empty.target_states_MD.shape == (0, world.CRM_CONFIG.hidden_dims[-1])
    np.testing.assert_allclose(empty.user_state_D, full.user_state_D, rtol=1e-5)
    assert scorer.score([], [], []) == []


def test_a_guest_without_profile_is_scored(scorer: CRMScorer) -> None:
    output = scorer.score([History.empty()], [Profile()], [np.array([1, 2])])[0]
    assert np.isfinite(output.logits_M).all()


def test_a_known_user_and_a_stranger_differ_by_the_user_embedding(scorer: CRMScorer) -> None:
    known, stranger = score(scorer, [request(9, [3], "u2"), request(9, [3], "nobody")])
    assert abs(known.logits_M - stranger.logits_M).max() > 1e-4


def test_retrieval_states_do_not_need_candidates(scorer: CRMScorer) -> None:
    histories, profiles, _ = zip(*REQUESTS, strict=True)
    states = scorer.retrieval_states(histories, profiles)
    assert states.shape == (4, world.CRM_CONFIG.state_dim)
    assert scorer.item_vectors().shape == (world.ITEMS + 1, world.CRM_CONFIG.state_dim)
    alone = scorer.retrieval_states(histories[2:3], profiles[2:3])
    np.testing.assert_allclose(states[2:3], alone, rtol=1e-4, atol=1e-5)


def test_the_model_is_frozen_and_in_eval_mode(scorer: CRMScorer) -> None:
    assert not scorer.model.training
    assert not any(parameter.requires_grad for parameter in scorer.model.parameters())
    assert_close(score(scorer, REQUESTS[:1])[0], score(scorer, REQUESTS[:1])[0])
    scorer.model.train()
    with pytest.raises(ArtifactError, match="training mode"):
        score(scorer, REQUESTS[:1])


def test_a_renumbered_catalogue_scores_the_same_items_the_same(
    scorer: CRMScorer, tmp_path: Path
) -> None:
    grown = world.catalogue(world.ITEMS + 3)
    order = np.array([0, *np.random.default_rng(1).permutation(np.arange(1, len(grown)))])
    renamed = type(grown)(*(
        [column[at] for at in order] for column in (grown.item_ids, grown.titles)
    ), {name: [column[at] for at in order] for name, column in grown.fields.items()})
    vectors = np.concatenate([world.vectors(), np.eye(3, world.DIMS, dtype=np.float32)])[order]
    place = np.argsort(order)
    other = CRMScorer.load(str(tmp_path), renamed, vectors)
    history, profile, items = REQUESTS[2]
    moved = History(
        place[history.items], history.ratings, history.labels, history.timestamps_s
    )
    expected = score(scorer, REQUESTS[2:3])[0]
    assert_close(score(other, [(moved, profile, place[items].tolist())])[0], expected)
    cold = int(place[world.ITEMS + 2])
    assert np.isfinite(score(other, [(moved, profile, [cold])])[0].logits_M).all()


@pytest.mark.parametrize("change", ["missing", "unknown", "misshapen"])
def test_a_wrong_weight_is_refused_by_name(tmp_path: Path, change: str) -> None:
    folder = write(tmp_path)
    tensors = storage.read_tensors(storage.join(folder, "crm.safetensors"))
    weight = tensors.pop("weights.output.weight")
    if change == "unknown":
        tensors.update({"weights.output.weight": weight, "weights.extra": weight})
    if change == "misshapen":
        tensors["weights.output.weight"] = weight[:, :-1]
    storage.write_tensors(storage.join(folder, "crm.safetensors"), tensors)
    name = "extra" if change == "unknown" else "output.weight"
    with pytest.raises(ArtifactError, match=name):
        CRMScorer.load(folder, world.catalogue(), world.vectors())


def test_text_vectors_of_another_width_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="width 3, the CRM wants 5"):
        CRMScorer.load(write(tmp_path), world.catalogue(), world.vectors()[:, :3])


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path)
    facts = storage.read_json(storage.join(folder, "crm.json"))
    storage.write_json(storage.join(folder, "crm.json"), {**facts, "format": 99})
    with pytest.raises(ArtifactError, match="format 99"):
        CRMScorer.load(folder, world.catalogue(), world.vectors())


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    one, two = Path(write(tmp_path / "a")), Path(write(tmp_path / "b"))
    for name in ("crm.safetensors", "crm.json", "users.parquet"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_maps_survive_their_three_parts() -> None:
    maps = world.maps()
    found = CRMMaps.read(maps.to_tensors(), maps.to_json(), maps.users_table())
    assert list(found.user_ids) == list(maps.user_ids)
    assert list(found.item_ids) == list(maps.item_ids)
    np.testing.assert_array_equal(found.counts_K3, maps.counts_K3)
    assert found.to_json() == maps.to_json()


def test_packed_texts_are_read_back() -> None:
    for texts in ([], [""], ["a", "", "Amélie", "日本"]):
        assert unpack_texts(*pack_texts(texts)) == texts
