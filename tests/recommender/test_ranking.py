import logging
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import PromptError
from engine.recommender import language, ranking
from engine.recommender.deadlines import Pace
from engine.recommender.language import (
    LanguageHalf,
    read_prompts,
    runs,
    score_readings,
    tokens_to_read,
)
from engine.recommender.prefix_cache import PrefixCache
from engine.recommender.ranking import RankTask, rank, rank_popular, score_crm
from engine.recommender.release import LoadedRelease
from engine.types import AnswerMode, GateInput, History, HistoryScope
from tests.tiny_release import FUSION, TinyWorld

FORMS = [
    (GateInput.USER, HistoryScope.SLATE), (GateInput.HYBRID, HistoryScope.SLATE),
    (GateInput.TARGET, HistoryScope.SLATE), (GateInput.USER, HistoryScope.CANDIDATE),
    (GateInput.TARGET, HistoryScope.CANDIDATE),
]


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: "-".join(form))
def any_release(request: pytest.FixtureRequest, world: TinyWorld) -> LoadedRelease:
    gate, scope = request.param
    release_id = f"{gate.value}-{scope.value}"
    world.publish(release_id, gate=gate, scope=scope)
    return world.load(release_id)


def task_of(world: TinyWorld, place: int, **change: object) -> RankTask:
    user_id = sorted(world.histories)[place]
    items = np.random.default_rng(place).permutation(np.arange(1, 41))[: 20 - place]
    profile = world.profiles.of(user_id)
    task = RankTask(profile, world.histories[user_id], items, llm_candidates=6, k=15)
    return replace(task, **change)


def test_an_answer_equals_the_models_asked_one_candidate_at_a_time(
    world: TinyWorld, any_release: LoadedRelease
) -> None:
    """The slow reference: no packing, no batch, no re-use of a prefix or a gate."""
    task = task_of(world, 0)
    half = any_release.language
    assert half is not None
    crm, llm = {}, {}
    for item in task.candidates.tolist():
        one = np.array([item])
        [output] = any_release.crm.score([task.history], [task.profile], [one])
        crm[item] = float(output.logits_M[0])
        prompt = half.prompts.build_all(task.history, task.profile, one)[0].prompt
        llm[item] = float(half.model.score([prompt], [half.model.gates(output)])[0][0])
    by_crm = sorted(crm, key=lambda item: (-crm[item], item))
    fused = {
        item: FUSION.crm_weight * crm[item] + FUSION.llm_weight * llm[item] + FUSION.bias
        for item in by_crm[:6]
    }
    expected = [*sorted(fused, key=lambda item: -fused[item]), *by_crm[6:]][:15]

    [answer] = rank(any_release, [task])
    assert answer.mode is AnswerMode.FULL
    assert [any_release.catalogue.index_of(each.item_id) for each in answer.items] == expected
    for item, each in zip(expected, answer.items, strict=True):
        assert each.crm_score == pytest.approx(crm[item], abs=1e-4)
        if item in fused:
            assert each.llm_score == pytest.approx(llm[item], abs=1e-3)
            assert each.score == pytest.approx(fused[item], abs=1e-3)
        else:
            assert each.llm_score is None
            assert each.score == pytest.approx(0.9 * crm[item] + 0.05, abs=1e-4)


def test_requests_ranked_together_and_alone_agree(
    world: TinyWorld, any_release: LoadedRelease
) -> None:
    tasks = [task_of(world, place, with_explanation=True) for place in range(6)]
    for together, task in zip(rank(any_release, tasks), tasks, strict=True):
        [alone] = rank(any_release, [task])
        assert [each.item_id for each in together.items] == [each.item_id for each in alone.items]
        assert [each.score for each in together.items] == pytest.approx(
            [each.score for each in alone.items], abs=1e-3
        )
        assert together.explanation is not None
        assert alone.explanation is not None
        assert together.explanation.gate_weights == pytest.approx(
            alone.explanation.gate_weights, abs=1e-4
        )


def test_many_candidates_take_several_passes_behind_one_prefix(
    world: TinyWorld, any_release: LoadedRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(world, 1, llm_candidates=19)
    [whole] = rank(any_release, [task])
    monkeypatch.setattr(language, "MAX_TOKENS", 40)         # a prefix, or a few blocks
    [cut] = rank(any_release, [task])
    assert [each.llm_score for each in cut.items] == pytest.approx(
        [each.llm_score for each in whole.items], abs=1e-3
    )


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 60))
def test_runs_are_full_and_lose_nothing(sizes: list[int], limit: int) -> None:
    spans = list(runs(sizes, limit))
    assert [size for span in spans for size in sizes[span]] == sizes
    assert all(sum(sizes[span]) <= limit or span.stop - span.start == 1 for span in spans)
    assert all(sum(sizes[one]) + sizes[other.start] > limit for one, other in pairwise(spans))


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_padded_runs_count_every_place_as_the_longest(sizes: list[int], limit: int) -> None:
    spans = list(runs(sizes, limit, padded=True))
    assert [size for span in spans for size in sizes[span]] == sizes
    for span in spans:
        run = sizes[span]
        assert len(run) * max(run) <= limit or len(run) == 1
    for one, other in pairwise(spans):
        longer = [*sizes[one], sizes[other.start]]
        assert len(longer) * max(longer) > limit


def test_without_the_language_model_the_crm_orders(
    world: TinyWorld, release: LoadedRelease
) -> None:
    asked = task_of(world, 2)
    none_asked = replace(asked, llm_candidates=0)
    for half, task in ((replace(release, language=None), asked), (release, none_asked)):
        [answer] = rank(half, [task])
        assert answer.mode is AnswerMode.CRM
        scores = [each.crm_score for each in answer.items]
        assert scores == sorted(scores, key=lambda score: -float(score or 0))
        assert all(each.llm_score is None for each in answer.items)


def test_a_prompt_that_cannot_be_built_costs_only_its_own_request(
    world: TinyWorld, release: LoadedRelease, caplog: pytest.LogCaptureFixture
) -> None:
    class Fussy:
        def __init__(self, half: LanguageHalf) -> None:
            self.config, self.half = half.prompts.config, half

        def build_all(
            self, history: History, profile: object, items: object, gate: object
        ) -> object:
            if history is tasks[0].history:
                raise PromptError("profile and candidate take 9999 tokens")
            return self.half.prompts.build_all(  # type: ignore[call-overload]
                history, profile, items, gate
            )

    assert release.language is not None
    tasks = [task_of(world, 0), task_of(world, 1)]
    fussy = replace(release.language, prompts=Fussy(release.language))  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        answers = rank(replace(release, language=fussy), tasks)
    assert [answer.mode for answer in answers] == [AnswerMode.CRM, AnswerMode.FULL]
    assert "9999 tokens" in caplog.text


def test_equal_scores_are_ordered_by_item(world: TinyWorld, release: LoadedRelease) -> None:
    order = ranking.best_first(np.array([1.0, 2.0, 1.0, 2.0]), np.array([9, 8, 3, 4]))
    assert order.tolist() == [3, 1, 2, 0]


def test_no_candidates_are_an_empty_answer(world: TinyWorld, release: LoadedRelease) -> None:
    task = task_of(world, 0, candidates=np.zeros(0, np.int32), with_explanation=True)
    full = task_of(world, 1)
    answers = rank(release, [task, full])
    assert answers[0].items == []
    assert answers[0].mode is AnswerMode.CRM
    assert len(answers[1].items) == 15


def test_an_empty_history_can_be_ranked(world: TinyWorld, release: LoadedRelease) -> None:
    task = task_of(world, 0, history=History.empty(), with_explanation=True)
    [answer] = rank(release, [task])
    assert len(answer.items) == 15
    assert answer.explanation is not None
    assert answer.explanation.past == []


def test_popular_items_have_a_calibrated_score_and_no_other(release: LoadedRelease) -> None:
    answer = rank_popular(release, np.array([5, 2, 9]), 2)
    scores = release.popularity.scores
    best = sorted([5, 2, 9], key=lambda item: (-scores[item], item))[:2]
    assert [release.catalogue.index_of(each.item_id) for each in answer.items] == best
    assert answer.items[0].score == pytest.approx(1.1 * scores[best[0]] - 0.2, abs=1e-5)
    assert answer.items[0].crm_score is None
    assert answer.mode is AnswerMode.POPULAR


def test_the_explanation_follows_attention_and_prompt(
    world: TinyWorld, release: LoadedRelease
) -> None:
    task = task_of(world, 3, with_explanation=True, with_gates=True)
    [answer] = rank(release, [task])
    explanation = answer.explanation
    assert explanation is not None
    assert explanation.gates is not None
    assert np.mean(explanation.gates, axis=0) == pytest.approx(explanation.gate_weights, abs=1e-5)

    [output] = score_crm(release, [task])
    weights = np.zeros(len(task.history))
    for each in answer.items:
        slot = task.candidates.tolist().index(release.catalogue.index_of(each.item_id))
        for place, weight in zip(output.behaviors_MS[slot], output.attention_MS[slot], strict=True):
            if place >= 0:
                weights[place] += weight / len(answer.items)
    times = task.history.timestamps_s.tolist()
    for past in explanation.past:
        assert past.attention == pytest.approx(weights[times.index(past.timestamp_s)], abs=1e-4)
    assert release.language is not None
    best = np.argsort(-output.logits_M)[:6]
    reading = read_prompts(
        release.language, task.history, task.profile, task.candidates, output, best
    )
    shown = {times[place] for place in reading.shown}
    assert {past.timestamp_s for past in explanation.past if past.is_in_prompt} == shown


def test_the_language_model_is_left_out_where_it_would_come_too_late(
    world: TinyWorld, release: LoadedRelease
) -> None:
    pace = Pace()
    tasks = [task_of(world, place) for place in range(3)]
    for _ in range(2):                                  # the first call's time is not counted
        rank(release, tasks, pace=pace)
    assert pace.seconds(1000) > 0
    pace.learn(1, 1e6)                                  # as if it took days
    soon = time.time() + 5
    hurried = [replace(tasks[0], answer_by_s=soon), tasks[1], replace(tasks[2], answer_by_s=1.0)]
    answers = rank(release, hurried, pace=pace)
    assert [answer.mode for answer in answers] == [
        AnswerMode.CRM, AnswerMode.FULL, AnswerMode.CRM,
    ]
    [alone] = rank(release, [tasks[1]])
    assert [item.item_id for item in answers[1].items] == [item.item_id for item in alone.items]
    [unhurried] = rank(release, [replace(tasks[0], answer_by_s=soon)], pace=Pace())
    assert unhurried.mode is AnswerMode.FULL
    modes = []
    while AnswerMode.FULL not in modes:                 # a wrong pace does not last
        assert len(modes) < 60
        modes.append(rank(
            release, [replace(tasks[0], answer_by_s=time.time() + 5)], pace=pace
        )[0].mode)
    assert modes[0] is AnswerMode.CRM


def test_kept_prefixes_cost_no_time(world: TinyWorld, release: LoadedRelease) -> None:
    task = task_of(world, 0)
    [output] = score_crm(release, [task])
    assert release.language is not None
    reading = read_prompts(
        release.language, task.history, task.profile, task.candidates, output, np.arange(3)
    )
    cache = PrefixCache(10**8)
    blocks = sum(len(block) for prompt in reading.prompts for block in prompt.blocks)
    prefixes = sum(len(prompt.prefix) for prompt in reading.prompts)
    assert tokens_to_read(release, reading, None) == blocks + prefixes
    assert tokens_to_read(release, reading, cache) == blocks + prefixes
    score_readings(release, [reading], cache)
    assert tokens_to_read(release, reading, cache) == blocks


def test_the_entropy_of_an_answer_is_that_of_its_gates(
    world: TinyWorld, release: LoadedRelease
) -> None:
    asked = task_of(world, 2, with_explanation=True, with_gates=True)
    [answer] = rank(release, [asked])
    assert answer.explanation is not None
    gates_GN = np.array(answer.explanation.gates)
    expected = -(gates_GN * np.log(gates_GN)).sum(axis=1).mean() / np.log(gates_GN.shape[1])
    assert answer.gate_entropy == pytest.approx(expected, abs=1e-4)
    [by_crm] = rank(release, [replace(asked, llm_candidates=0)])
    assert by_crm.gate_entropy is None


def test_no_readings_are_no_logits(release: LoadedRelease) -> None:
    assert [values.tolist() for values in score_readings(release, [None, None])] == [[], []]
