"""The relevant past events of a candidate: by hand, and against a slow reference."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.retrieval import behaviors
from engine.retrieval.behaviors import retrieve_behaviors
from engine.types import FloatArray, IntArray

VECTORS = np.array([[0, 0], [1, 0], [0.8, 0.6], [0, 1], [-1, 0]], np.float32)


def retrieve(
    history: list[int], candidates: list[int], lengths: list[int], size: int, newest: int = 100
) -> list[list[int]]:
    positions, _ = retrieve_behaviors(
        VECTORS, np.array(history, np.int32), np.array(candidates), np.array(lengths),
        max_behaviors=size, max_history=newest,
    )
    return positions.tolist()


def test_nearest_events_come_in_time_order() -> None:
    assert retrieve([4, 2, 3, 2], [1], [4], 2) == [[1, 3]]


def test_an_event_of_the_candidate_itself_outranks_every_other() -> None:
    assert retrieve([4, 1, 1], [4], [3], 1) == [[0]]


def test_ties_go_to_the_newer_event() -> None:
    assert retrieve([2, 2, 2, 3], [1], [4], 2) == [[1, 2]]


def test_only_the_newest_events_are_searched() -> None:
    assert retrieve([1, 3, 4], [1], [3], 1, newest=2) == [[1]]


def test_an_event_of_negative_similarity_is_read_before_padding() -> None:
    assert retrieve([4], [1], [1], 3) == [[0, -1, -1]]


def test_an_empty_history_is_all_padding() -> None:
    assert retrieve([], [1, 2], [0, 0], 2) == [[-1, -1], [-1, -1]]
    assert retrieve([1, 2], [1], [0], 2) == [[-1, -1]]


def slow_reference(
    vectors: FloatArray, history: IntArray, candidate: int, length: int, size: int, newest: int
) -> list[int]:
    seen = range(max(0, length - newest), length)
    ranked = sorted(seen, key=lambda at: (
        -(round(float(vectors[candidate] @ vectors[history[at]]), 4)
          + 2 * (history[at] == candidate)), -at,
    ))
    chosen = sorted(ranked[:size])
    return chosen + [-1] * (size - len(chosen))


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 7), max_size=30), st.integers(1, 8), st.integers(1, 40),
    st.integers(0, 2**16), st.integers(1, 50),
)
def test_fast_path_equals_slow_reference(
    items: list[int], size: int, newest: int, seed: int, chunk_entries: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (8, 3)).astype(np.float32) / 4        # exact sums, many ties
    history = np.array(items, np.int32)
    candidates = rng.integers(0, 8, 6)
    lengths = rng.integers(0, len(items) + 1, 6)
    before = behaviors.CHUNK_ENTRIES
    behaviors.CHUNK_ENTRIES = chunk_entries
    try:
        found, cosines = retrieve_behaviors(
            vectors, history, candidates, lengths, max_behaviors=size, max_history=newest
        )
    finally:
        behaviors.CHUNK_ENTRIES = before
    for row in range(6):
        expected = slow_reference(
            vectors, history, candidates[row], lengths[row], size, newest
        )
        assert found[row].tolist() == expected
        for position, cosine in zip(found[row], cosines[row], strict=True):
            wanted = 0 if position < 0 else vectors[candidates[row]] @ vectors[history[position]]
            assert abs(cosine - wanted) < 1e-3
