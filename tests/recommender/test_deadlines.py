from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.recommender.deadlines import Pace, in_time

INF = float("inf")


@pytest.mark.parametrize(("costs_s", "left_s", "expected"), [
    ([], [], []),
    ([5.0, 5.0], [INF, INF], [True, True]),
    ([1.0, 1.0, 1.0], [2.5, 2.5, 2.5], [True, True, False]),
    ([1.0, 1.0], [1.5, INF], [False, True]),            # either alone: the one with more time
    ([0.5, 0.5, 9.0], [1.5, INF, INF], [False, True, True]),
    ([9.0, 0.1, 0.1], [INF, 0.35, 0.35], [True, False, False]),     # who has any time is read
    ([0.1, 0.1, 0.1], [INF, 0.35, 0.35], [True, True, True]),
    ([0.0], [-0.1], [False]),                           # too late already
    ([3.0, 0.1, 0.1], [5.0, 5.0, 0.3], [True, True, False]),
    ([3.0, 0.1, 0.1, 0.1], [3.05, 5.0, 0.35, 0.35], [False, True, True, True]),
])
def test_the_most_are_read_that_are_answered_in_time(
    costs_s: list[float], left_s: list[float], expected: list[bool]
) -> None:
    assert in_time(costs_s, left_s) == expected


@given(st.lists(
    st.tuples(st.integers(0, 6), st.one_of(st.integers(-1, 12), st.just(INF))), max_size=7
))
def test_no_choice_answers_more_in_time(requests: list[tuple[int, float]]) -> None:
    def is_in_time(choice: tuple[bool, ...] | list[bool]) -> bool:
        if not all(is_chosen for (_, left), is_chosen in zip(requests, choice, strict=True)
                   if left == INF):
            return False
        chosen = [each for each, is_chosen in zip(requests, choice, strict=True) if is_chosen]
        end = sum(cost for cost, _ in chosen)
        return all(end <= left for _, left in chosen)

    found = in_time([cost for cost, _ in requests], [left for _, left in requests])
    assert is_in_time(found)
    assert sum(found) == max(
        sum(choice) for choice in product((False, True), repeat=len(requests)) if is_in_time(choice)
    )


def test_the_pace_follows_what_is_measured() -> None:
    pace = Pace()
    assert pace.seconds(1000) == 0
    pace.learn(0, 5.0)                                  # nothing was read: nothing is learned
    assert pace.seconds(1000) == 0
    pace.learn(100, 50.0)                               # the first pays for what is loaded once
    assert pace.seconds(1000) == 0
    pace.learn(100, 1.0)
    assert pace.seconds(300) == pytest.approx(3.0)
    for _ in range(30):
        pace.learn(100, 2.0)
    assert pace.seconds(100) == pytest.approx(2.0, abs=0.01)
    pace.doubt()
    assert pace.seconds(100) == pytest.approx(1.4, abs=0.01)
