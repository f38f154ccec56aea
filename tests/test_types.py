"""Windows, histories, and values that cross processes."""

import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import types
from engine.types import (
    AnsweredRequest,
    AnswerList,
    AnswerMode,
    CRMOutput,
    History,
    Outcome,
    Profile,
    SlatePrompt,
    Timeline,
    Window,
)


def _history(times: list[int]) -> History:
    size = len(times)
    return History(
        np.arange(1, size + 1, dtype=np.int32), np.linspace(1, 5, size, dtype=np.float32),
        np.ones(size, np.int8), np.array(times, np.int64),
    )


OUTCOME = Outcome(["m1", "m1"], 2)
ANSWER = AnswerList("release-1", AnswerMode.FULL, ["m1", "m2"])
EXAMPLES: list[Any] = [
    OUTCOME, ANSWER, AnsweredRequest("ann", [ANSWER], OUTCOME),
    Timeline(0, 8, 10, 12, 14), _history([1, 2, 2, 9]), Profile("u1", {"gender": ["F"]}),
    SlatePrompt(np.arange(3), [np.arange(2), np.arange(1)]),
    CRMOutput(
        np.zeros(2, np.float32), np.zeros(4, np.float32), np.zeros((2, 3), np.float32),
        np.full((2, 5), -1), np.zeros((2, 5), np.float32),
    ),
]


def _assert_equal(left: Any, right: Any) -> None:
    if dataclasses.is_dataclass(left):
        assert type(left) is type(right)
        for field in dataclasses.fields(left):
            _assert_equal(getattr(left, field.name), getattr(right, field.name))
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    elif isinstance(left, list):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            _assert_equal(one, other)
    else:
        assert left == right


def test_every_type_survives_pickle() -> None:
    defined = {
        kind for kind in vars(types).values()
        if dataclasses.is_dataclass(kind) and kind.__module__ == types.__name__
    }
    assert {type(example) for example in EXAMPLES} == defined
    for example in EXAMPLES:
        _assert_equal(pickle.loads(pickle.dumps(example)), example)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_types_are_frozen(example: Any) -> None:
    name = dataclasses.fields(example)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(example, name, None)


def test_a_cut_belongs_to_the_window_after_it() -> None:
    timeline = Timeline(start_s=0, t0_s=80, t1_s=100, t2_s=110, end_s=120)
    times = np.array([0, 79, 80, 99, 100, 109, 110, 120])
    expected = [Window.CRM, Window.CRM, Window.BANK, Window.BANK, Window.VALIDATION,
                Window.VALIDATION, Window.TEST, Window.TEST]
    assert timeline.window_of(times).tolist() == expected


def test_before_is_strict() -> None:
    history = _history([1, 2, 2, 9])
    assert history.before(2).timestamps_s.tolist() == [1]
    assert history.before(3).timestamps_s.tolist() == [1, 2, 2]
    assert len(history.before(1)) == 0
    assert len(history.before(10)) == 4


@given(times=st.lists(st.integers(0, 20), max_size=12).map(sorted), cut=st.integers(-1, 21))
def test_before_equals_the_slow_reference(times: list[int], cut: int) -> None:
    found = _history(times).before(cut)
    assert found.timestamps_s.tolist() == [time for time in times if time < cut]
    assert found.items.tolist() == list(range(1, len(found) + 1))


@given(times=st.lists(st.integers(0, 20), max_size=12).map(sorted), length=st.integers(0, 15))
def test_head_and_tail_are_the_ends_of_the_history(times: list[int], length: int) -> None:
    history = _history(times)
    items = history.items.tolist()
    assert history.head(length).items.tolist() == items[:length]
    assert history.tail(length).items.tolist() == items[max(0, len(items) - length) :]
    for part in (history.head(length), history.tail(length)):
        sizes = {len(part.items), len(part.ratings), len(part.labels), len(part.timestamps_s)}
        assert sizes == {min(length, len(times))}


def test_an_empty_history_has_the_types_of_a_full_one() -> None:
    empty, full = History.empty(), _history([1])
    assert len(empty) == 0
    for field in dataclasses.fields(History):
        assert getattr(empty, field.name).dtype == getattr(full, field.name).dtype
