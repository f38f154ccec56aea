import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from torch import Tensor

from engine import storage
from engine.data.profiles import Profiles
from engine.data.schema import users_schema
from engine.errors import ReleaseError, ReleaseFormatError
from engine.models.fusion import Fusion
from engine.models.readout import Readout
from engine.recommender import golden as module
from engine.recommender.golden import GOLDEN, GoldenRequest, make_golden
from engine.recommender.release import LoadedRelease
from engine.types import GateInput, HistoryScope
from tests.tiny_release import TinyWorld, tiny_world

END_S = 900_000_000


@pytest.fixture(scope="module")
def own_world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return tiny_world(tmp_path_factory.mktemp("golden"))


def asked(world: TinyWorld, release_id: str, **how: Any) -> list[GoldenRequest]:
    """Publish a release without golden requests; return those that it answers."""
    world.publish(release_id, **how)
    return make_golden(world.load(release_id), END_S)


def as_json(requests: list[GoldenRequest]) -> Any:
    return GOLDEN.dump_python(requests, mode="json")


@pytest.mark.parametrize(("gate", "scope"), [
    (GateInput.USER, HistoryScope.SLATE), (GateInput.HYBRID, HistoryScope.SLATE),
    (GateInput.TARGET, HistoryScope.CANDIDATE),
])
def test_a_release_that_answers_as_it_did_is_loaded_by_both_halves(
    own_world: TinyWorld, gate: GateInput, scope: HistoryScope
) -> None:
    how: Any = {"gate": gate, "scope": scope, "seed": 4}
    requests = asked(own_world, f"plain-{gate}-{scope}", **how)
    assert [len(request.items) for request in requests] == [1, 12, 35]      # of 40 items
    assert all(request.llm is not None and len(request.llm) == 5 for request in requests)
    own_world.publish(f"golden-{gate}-{scope}", golden=as_json(requests), **how)
    for with_llm in (True, False):
        own_world.load(f"golden-{gate}-{scope}", with_llm=with_llm)


def test_histories_are_of_popular_items_and_name_nobody(own_world: TinyWorld) -> None:
    requests = asked(own_world, "whose")
    release = own_world.load("whose")
    events = release.popularity.events
    order = sorted(release.catalogue.item_ids[1:],
                   key=lambda item: (-events[release.catalogue.index_of(item)],
                                     release.catalogue.index_of(item)))
    for request in requests:
        assert list(request.candidates) == order[:5]
        assert list(request.items) == order[5 : 5 + len(request.items)]
        assert set(request.labels) <= {0, 1}
        assert list(request.timestamps_s) == sorted(request.timestamps_s)
        assert request.timestamps_s[-1] < END_S
    assert {bool(request.fields) for request in requests} == {True, False}
    assert set(as_json(requests)[0]) == {
        "items", "ratings", "labels", "timestamps_s", "fields", "candidates", "crm", "llm", "score",
    }


def test_a_value_that_one_user_alone_has_is_nobodys_typical_value() -> None:
    def table(values: list[list[str]]) -> Profiles:
        rows = [{"user_id": str(number), "job": value} for number, value in enumerate(values)]
        return Profiles.from_table(
            pa.Table.from_pylist(rows, schema=users_schema(["job"])), ["job"]
        )

    assert table([["a"], ["b"], ["b"], []]).most_frequent("job") == ("b",)
    assert table([["a"], ["b"], []]).most_frequent("job") == ()


def test_another_crm_is_refused_by_both_halves(own_world: TinyWorld) -> None:
    requests = asked(own_world, "crm-plain", seed=1)
    own_world.publish("crm-other", seed=2, golden=as_json(requests))
    for with_llm in (True, False):
        with pytest.raises(ReleaseError, match=r"'crm-other' answers its golden request 0.*crm"):
            own_world.load("crm-other", with_llm=with_llm)


def test_a_language_model_that_answers_otherwise_is_refused_by_its_half_alone(
    own_world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = asked(own_world, "llm-plain", seed=3)
    own_world.publish("llm-golden", seed=3, golden=as_json(requests))
    score = module.rank

    def off_by(amount: float) -> None:
        def rank(release: LoadedRelease, tasks: Any) -> Any:
            return [
                replace(ranking, items=[
                    replace(item, llm_score=None if item.llm_score is None
                            else item.llm_score + amount)
                    for item in ranking.items
                ])
                for ranking in score(release, tasks)
            ]
        monkeypatch.setattr(module, "rank", rank)

    off_by(0.2)                         # another type of weights, another device
    own_world.load("llm-golden")
    for amount in (0.3, -0.3, float("nan")):
        off_by(amount)
        own_world.load("llm-golden", with_llm=False)
        with pytest.raises(ReleaseError, match=r"golden request 0.*llm logits are"):
            own_world.load("llm-golden")


def test_a_fusion_that_answers_otherwise_is_refused(
    own_world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = asked(own_world, "fusion-plain", seed=3)
    own_world.publish("fusion-golden", seed=3, golden=as_json(requests))
    weights = own_world.load("fusion-golden").fusion
    combine = Fusion.combine
    for off, is_refused in ((0.1, False), (0.13, True)):       # 0.7 * 0.02 + 0.4 * 0.25 + 0.001
        assert (weights.crm_weight, weights.llm_weight) == (0.7, 0.4)
        monkeypatch.setattr(
            Fusion, "combine", lambda self, crm, llm, off=off: combine(self, crm, llm) + off
        )
        if is_refused:
            with pytest.raises(ReleaseError, match="score logits are"):
                own_world.load("fusion-golden")
        else:
            own_world.load("fusion-golden")


def test_an_answer_without_the_language_model_that_had_one_is_refused(
    own_world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = asked(own_world, "silent-plain", seed=3)
    own_world.publish("silent", seed=3, golden=as_json(requests))
    monkeypatch.setattr("engine.recommender.ranking._read", lambda *a: None)
    own_world.load("silent", with_llm=False)
    with pytest.raises(ReleaseError, match="llm logits are missing"):
        own_world.load("silent")


def test_where_no_prompt_can_be_built_the_other_scores_are_kept(
    own_world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("engine.recommender.ranking._read", lambda *a: None)
        requests = asked(own_world, "no-prompt-plain", seed=3)
        assert [request.llm for request in requests] == [None] * 3
        own_world.publish("no-prompt", seed=3, golden=as_json(requests))
        own_world.load("no-prompt")
        own_world.load("no-prompt", with_llm=False)


def test_scores_that_are_no_numbers_make_no_release(
    own_world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_world.publish("nan", seed=5)
    release = own_world.load("nan")
    assert release.language is not None
    monkeypatch.setattr(Readout, "forward", all_nan)
    with pytest.raises(ReleaseError, match="'nan' answers a history of 1 popular items with"):
        make_golden(release, END_S)


def all_nan(_: Readout, hidden_BTD: Tensor, segments_BT: Tensor, num_slots: int) -> Tensor:
    return hidden_BTD.new_full((len(hidden_BTD), num_slots), float("nan"))


def test_a_catalogue_of_three_items_is_enough(tmp_path: Path) -> None:
    world = tiny_world(tmp_path, users=4, items=3, events=5)
    requests = asked(world, "small")
    assert all(len(request.candidates) == 3 for request in requests)
    world.publish("small-golden", golden=as_json(requests))
    world.load("small-golden")


def test_a_file_of_another_version_is_refused_by_name(own_world: TinyWorld) -> None:
    requests = as_json(asked(own_world, "format-plain"))
    own_world.publish("format", golden=[{**requests[0], "answer": 1}])
    reason = r"golden\.json is not of this version: 0\.answer: "
    with pytest.raises(ReleaseFormatError, match=reason):
        own_world.load("format")


def test_requests_survive_their_file(own_world: TinyWorld, tmp_path: Path) -> None:
    requests = asked(own_world, "file")
    storage.write_json(str(tmp_path / "golden.json"), as_json(requests))
    again = GOLDEN.validate_python(json.loads((tmp_path / "golden.json").read_text()))
    for one, other in zip(requests, again, strict=True):
        np.testing.assert_array_equal(one.crm, other.crm)
        assert list(one.items) == list(other.items)
