from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import SlateConfig
from engine.data.negatives import (
    ImplicitSlates,
    NegativeSampler,
    previous_times,
    user_generator,
)
from engine.data.slates import Slate
from engine.types import FeedbackKind, History, IntArray, Timeline

TIMELINE = Timeline(0, 40, 60, 80, 100)
NUM_ITEMS = 30

EVENTS = st.sets(st.tuples(st.integers(0, 100), st.integers(1, 12)), max_size=80)


def _history(events: list[tuple[int, int]] | set[tuple[int, int]]) -> History:
    """Return the history of (time, item) pairs."""
    ordered = sorted(events)
    ones = np.ones(len(ordered))
    return History(
        np.array([item for _, item in ordered], np.int32), ones.astype(np.float32),
        ones.astype(np.int8), np.array([time_s for time_s, _ in ordered], np.int64),
    )


def _sampler(config: SlateConfig | None = None) -> NegativeSampler:
    return NegativeSampler.from_counts(np.arange(NUM_ITEMS + 1), config or SlateConfig())


def _build(history: History, config: SlateConfig, user: str = "u") -> tuple[list[Slate], int]:
    builder = ImplicitSlates(
        history, _windows(history), config, _sampler(config), user_generator(3, user)
    )
    return list(builder), builder.dropped


def _windows(history: History) -> IntArray:
    return TIMELINE.window_of(history.timestamps_s)


def _had(history: History, length: int) -> set[int]:
    return set(history.items[:length].tolist())


@given(EVENTS, st.integers(1, 3), st.integers(1, 4), st.integers(1, 40))
def test_had_it_before_says_nothing_about_the_label(
    events: set[tuple[int, int]], positives: int, negatives: int, max_span_s: int
) -> None:
    history = _history(events)
    config = SlateConfig(
        max_size=positives * (1 + negatives), negatives=negatives, max_span_s=max_span_s
    )
    for slate in _build(history, config)[0]:
        for item, kind, length in zip(
            slate.items, slate.kinds, slate.row_history_lengths, strict=True
        ):
            expected = kind == FeedbackKind.REPEAT      # the same for every row of a kind: AUC 0.5
            assert (item in _had(history, slate.history_length)) == expected
            assert (item in _had(history, length)) == expected


@given(EVENTS, st.integers(1, 3), st.integers(1, 4), st.integers(1, 40))
def test_no_example_sees_its_own_future_nor_its_slates(
    events: set[tuple[int, int]], positives: int, negatives: int, max_span_s: int
) -> None:
    history = _history(events)
    config = SlateConfig(
        max_size=positives * (1 + negatives), negatives=negatives, max_span_s=max_span_s
    )
    slates, dropped = _build(history, config)
    found = []
    for slate in slates:
        first_s = history.timestamps_s[slate.first]
        assert (history.timestamps_s[: slate.history_length] < first_s).all()
        assert (history.timestamps_s[slate.history_length :] >= first_s).all()
        assert (slate.timestamps_s >= first_s).all()
        assert (slate.timestamps_s <= first_s + max_span_s).all()
        assert set(TIMELINE.window_of(slate.timestamps_s).tolist()) == {slate.window}
        for time_s, length in zip(slate.timestamps_s, slate.row_history_lengths, strict=True):
            assert length == np.searchsorted(history.timestamps_s, time_s, side="left")
        found.extend(zip(
            slate.timestamps_s[slate.labels == 1].tolist(),
            slate.items[slate.labels == 1].tolist(), strict=True,
        ))
    assert len(found) + dropped == len(events)          # every event is one positive, or counted
    assert set(found) <= events
    assert len(set(found)) == len(found)


@given(EVENTS, st.integers(1, 3), st.integers(1, 4))
def test_negatives_are_different_items_not_had_in_the_slates_time(
    events: set[tuple[int, int]], positives: int, negatives: int
) -> None:
    history = _history(events)
    config = SlateConfig(max_size=positives * (1 + negatives), negatives=negatives, max_span_s=9)
    for slate in _build(history, config)[0]:
        assert len(set(slate.items.tolist())) == len(slate.items) <= config.max_size
        own = slate.labels == 1
        ends_s = slate.timestamps_s[own].min(), slate.timestamps_s[own].max()
        inside = (history.timestamps_s >= ends_s[0]) & (history.timestamps_s <= ends_s[1])
        assert not set(slate.items[~own]) & set(history.items[inside])
        for kind in set(slate.kinds.tolist()):
            labels = slate.labels[slate.kinds == kind]
            assert 1 <= labels.sum() < len(labels) <= labels.sum() * (1 + negatives)
        if FeedbackKind.NEW in slate.kinds:             # the catalogue is large enough for all
            labels = slate.labels[slate.kinds == FeedbackKind.NEW]
            assert len(labels) == labels.sum() * (1 + negatives)


def test_a_worked_example() -> None:
    history = _history([(0, 1), (5, 2), (10, 1), (10, 3)])
    slates, dropped = _build(history, SlateConfig(max_size=4, negatives=1, max_span_s=1))
    assert dropped == 0
    assert [(slate.first, slate.history_length) for slate in slates] == [(0, 0), (1, 1), (2, 2)]
    last = slates[2]
    rows = set(zip(last.items.tolist(), last.labels.tolist(), last.kinds.tolist(), strict=True))
    repeat, new = FeedbackKind.REPEAT, FeedbackKind.NEW
    known = {(1, 1, repeat), (2, 0, repeat), (3, 1, new)}
    assert known < rows
    (drawn,) = rows - known
    assert drawn[0] not in {0, 1, 2, 3}
    assert drawn[1:] == (0, new)


def test_a_repeat_without_another_earlier_item_is_left_out_and_counted() -> None:
    slates, dropped = _build(_history([(0, 1), (50, 1), (90, 1)]), SlateConfig())
    assert dropped == 2
    assert [slate.first for slate in slates] == [0]


def test_an_item_bought_twice_in_a_span_ends_the_slate() -> None:
    config = SlateConfig(max_size=6, negatives=1, max_span_s=30)
    slates, _ = _build(_history([(0, 9), (1, 1), (2, 2), (3, 1)]), config)
    assert [(slate.first, slate.history_length) for slate in slates] == [(0, 0), (3, 3)]


def test_draws_depend_on_seed_and_user_alone() -> None:
    history = _history([(time_s, 1 + time_s % 12) for time_s in range(60)])
    config = SlateConfig()
    first, again, other = (_build(history, config, user)[0] for user in ("a", "a", "b"))
    assert all(
        np.array_equal(x.items, y.items) for x, y in zip(first, again, strict=True)
    )
    assert any(
        not np.array_equal(x.items, y.items) for x, y in zip(first, other, strict=True)
    )


def test_the_place_of_a_row_does_not_tell_its_label() -> None:
    history = _history([(time_s, 1 + time_s % 12) for time_s in range(40)])
    places = Counter[int]()
    for user in range(60):
        for slate in _build(history, SlateConfig(max_size=5), str(user))[0]:
            places[int(np.flatnonzero(slate.labels)[0])] += len(slate.items) == 5
    share = np.array([places[place] for place in range(5)]) / sum(places.values())
    assert sum(places.values()) > 1000
    assert np.abs(share - 0.2).max() < 0.04             # 4 standard errors


@pytest.mark.parametrize(("draw", "expected"), [
    ("popularity", np.array([0.0, 1, 4, 9]) ** 0.75), ("uniform", np.array([0.0, 1, 1, 1])),
])
def test_new_negatives_are_drawn_by_the_stated_chance(draw: str, expected: np.ndarray) -> None:
    config = SlateConfig.model_validate({"negative_draw": draw})
    sampler = NegativeSampler.from_counts(np.array([99, 0, 3, 8]), config)
    rng = np.random.default_rng(0)
    drawn = Counter(sampler.draw(1, set(), rng)[0] for _ in range(20_000))
    share = np.array([drawn[item] for item in range(4)]) / 20_000
    assert np.abs(share - expected / expected.sum()).max() < 0.015


@given(EVENTS, st.sets(st.integers(1, 12), max_size=8))
def test_what_may_not_be_drawn_is_no_negative_of_any_kind(
    events: set[tuple[int, int]], barred: set[int]
) -> None:
    history, config = _history(events), SlateConfig()
    is_allowed_I = ~np.isin(np.arange(NUM_ITEMS + 1), list(barred))
    sampler = _sampler(config).among(is_allowed_I)
    windows, rng = _windows(history), user_generator(3, "u")
    for slate in ImplicitSlates(history, windows, config, sampler, rng):
        assert not barred & set(slate.items[slate.labels == 0].tolist())


def test_a_repeat_that_may_not_be_drawn_stays_without_negatives() -> None:
    """Whoever asked for it leaves it out: an exam looks for it in lists."""
    history, config = _history([(1, 4), (90, 4)]), SlateConfig()
    for is_allowed, labels, dropped in ((True, [], 1), (False, [1], 0)):
        sampler = _sampler(config).among(np.full(NUM_ITEMS + 1, is_allowed))
        windows, rng = _windows(history), user_generator(3, "u")
        builder = ImplicitSlates(history, windows, config, sampler, rng)
        found = [label for slate in builder if slate.timestamps_s[0] == 90
                 for label in slate.labels.tolist()]
        assert found == labels
        assert builder.dropped == dropped


def test_a_draw_gives_all_that_is_left_when_it_is_less() -> None:
    rng = np.random.default_rng(0)
    excluded = set(range(1, NUM_ITEMS + 1)) - {4, 7}
    assert sorted(_sampler().draw(5, excluded, rng)) == [4, 7]
    assert _sampler().draw(5, excluded | {4, 7}, rng) == []


@given(EVENTS)
def test_previous_times_are_those_of_a_slow_search(events: set[tuple[int, int]]) -> None:
    history = _history(events)
    expected = [
        max((t for t, i in events if i == item and t < time_s), default=-1)
        for time_s, item in sorted(events)
    ]
    assert previous_times(history).tolist() == expected


def test_a_user_with_tens_of_thousands_of_events_has_slates() -> None:
    rng = np.random.default_rng(0)
    events = {(int(time_s) // 7, int(item)) for time_s, item in zip(
        rng.integers(0, 300_000, 30_000), rng.integers(1, NUM_ITEMS - 8, 30_000), strict=True
    )}
    history = _history(events)
    slates, dropped = _build(history, SlateConfig(max_span_s=86_400))
    assert sum(int(slate.labels.sum()) for slate in slates) + dropped == len(events) > 20_000
