import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.stages.retrieval import hits


def test_seen_items_leave_their_place_to_others() -> None:
    scores = np.array([9.0, 5, 4, 3, 2])                 # index 0 is the unknown item
    assert hits(scores, np.array([1]), np.array([2, 3, 4]), top=2) == 2
    assert hits(scores, np.array([], int), np.array([2, 3, 4]), top=2) == 1
    assert hits(scores, np.array([1]), np.array([1]), top=4) == 0


def test_ties_go_to_the_lower_index() -> None:
    assert hits(np.zeros(5), np.array([], int), np.array([1]), top=1) == 1
    assert hits(np.zeros(5), np.array([], int), np.array([2]), top=1) == 0


@given(seed=st.integers(0, 50), top=st.integers(1, 30))
def test_it_equals_a_plain_sort_of_the_unseen_items(seed: int, top: int) -> None:
    draw = np.random.default_rng(seed)
    scores, seen = draw.normal(size=20), draw.integers(1, 20, 5)
    wanted = np.setdiff1d(draw.integers(1, 20, 6), seen)
    unseen = sorted(set(range(1, 20)) - set(seen.tolist()), key=lambda item: -scores[item])
    assert hits(scores, seen, wanted, top) == len(set(unseen[:top]) & set(wanted.tolist()))
