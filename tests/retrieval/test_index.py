from collections.abc import Callable

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import RetrievalConfig
from engine.retrieval.cells import CellIndex
from engine.retrieval.index import ExactIndex, build_index, products, with_items

WIDTH = 16
LIMIT = 50
Filter = Callable[[np.ndarray], np.ndarray]


def draw(size: int, seed: int = 0, width: int = WIDTH) -> tuple[np.ndarray, np.ndarray]:
    """Return clustered vectors of different lengths, row 0 being zero, and states like them."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, width))
    vectors = centres[rng.integers(0, 40, size)] + 0.5 * rng.normal(size=(size, width))
    vectors *= 1 + 0.2 * rng.exponential(size=(size, 1))
    vectors[0] = 0
    states = centres[rng.integers(0, 40, 20)] + rng.normal(size=(20, width))
    return vectors.astype(np.float32), states.astype(np.float32)


def all_but_the_unknown(size: int) -> np.ndarray:
    allowed = np.ones(size, bool)
    allowed[0] = False
    return allowed


@given(
    rows=st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=60),
    few=st.booleans(), limit=st.integers(0, 70), data=st.data(),
)
def test_an_exact_search_equals_a_loop_over_all_items(
    rows: list[tuple[int, int]], few: bool, limit: int, data: st.DataObject
) -> None:
    vectors, state = np.array(rows, np.float32), np.array([1.0, -2.0], np.float32)
    allowed = np.array([data.draw(st.booleans()) for _ in rows])
    if few:
        allowed[:] = False
        allowed[len(rows) - len(rows) // 10 :] = True
    items = [item for item in range(len(rows)) if allowed[item]]
    expected = sorted(items, key=lambda item: (-(rows[item][0] - 2 * rows[item][1]), item))
    assert ExactIndex(vectors).search(state, allowed, limit).tolist() == expected[:limit]


@given(
    size=st.integers(0, 100), share=st.floats(0, 1), width=st.sampled_from([12, 63, 64]),
    seed=st.integers(0, 1_000),
)
def test_a_score_is_the_same_wherever_its_item_stands(
    size: int, share: float, width: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(size, width)).astype(np.float32)
    state = rng.normal(size=width).astype(np.float32)
    taken = np.flatnonzero(rng.random(size) < share)
    scores = products(vectors, state)
    np.testing.assert_array_equal(products(vectors[taken], state), scores[taken])
    np.testing.assert_allclose(scores, vectors.astype(float) @ state, atol=1e-4)


def test_a_catalogue_up_to_the_limit_is_searched_exactly() -> None:
    vectors, _ = draw(101)              # 100 items and the unknown one
    for config, kind in (
        (None, ExactIndex), (RetrievalConfig(), ExactIndex),
        (RetrievalConfig(exact_items=100), ExactIndex),
        (RetrievalConfig(exact_items=99), CellIndex), (RetrievalConfig(exact_items=0), CellIndex),
    ):
        assert type(build_index(vectors, config)) is kind


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 250), probes=st.integers(1, 20), limit=st.integers(1, 120),
    share=st.floats(0, 1), distinct=st.integers(1, 250), seed=st.integers(0, 1000),
)
def test_as_many_allowed_items_as_there_are_are_found_best_first(
    size: int, probes: int, limit: int, share: float, distinct: int, seed: int
) -> None:
    # Quarters: no sum rounds, so scores are equal or not however they are summed.
    vectors, states = (np.round(4 * each) / 4 for each in draw(size, seed))
    vectors = vectors[np.arange(size) % distinct]           # equal items, too
    allowed = np.random.default_rng(seed).random(size) < share
    index = CellIndex(vectors, RetrievalConfig(probes=probes))
    for state in states[:3]:
        found = index.search(state, allowed, limit)
        assert found.dtype == np.int32
        assert len(set(found.tolist())) == len(found) == min(limit, allowed.sum())
        assert allowed[found].all()
        keys = [(-score, item) for score, item in
                zip((vectors[found] @ state).tolist(), found.tolist(), strict=True)]
        assert keys == sorted(keys)


def test_a_search_of_all_cells_equals_the_exact_one() -> None:
    vectors, states = draw(2_000)
    allowed = all_but_the_unknown(len(vectors))
    allowed[::3] = False
    index = CellIndex(vectors, RetrievalConfig(probes=1_000))
    for state in states:
        expected = ExactIndex(vectors).search(state, allowed, LIMIT)
        assert index.search(state, allowed, LIMIT).tolist() == expected.tolist()


def tenth_by_place(vectors: np.ndarray) -> np.ndarray:
    """Allow the tenth that lies farthest in one direction, as the items of a genre may."""
    far = vectors @ np.random.default_rng(1).normal(size=vectors.shape[1])
    return np.asarray(far < np.quantile(far, 0.1))


def tenth_at_random(vectors: np.ndarray) -> np.ndarray:
    return np.random.default_rng(2).random(len(vectors)) < 0.1


def everything(vectors: np.ndarray) -> np.ndarray:
    return all_but_the_unknown(len(vectors))


@pytest.mark.parametrize(("allow", "floor"), [
    (everything, 0.97), (tenth_at_random, 0.99), (tenth_by_place, 0.97),
])
def test_most_of_the_exact_answer_is_found(allow: Filter, floor: float) -> None:
    vectors, states = draw(20_000)
    index = CellIndex(vectors, RetrievalConfig(probes=24))       # of 141
    exact, allowed = ExactIndex(vectors), allow(vectors)
    shares = [
        len(set(index.search(state, allowed, LIMIT)) & set(exact.search(state, allowed, LIMIT)))
        / LIMIT for state in states
    ]
    assert np.mean(shares) > floor
    assert min(shares) > 0.6


def test_more_probes_find_more() -> None:
    vectors, states = draw(5_000)
    allowed = everything(vectors)
    hits = []
    for probes in (1, 4, 16):
        index = CellIndex(vectors, RetrievalConfig(probes=probes))
        hits.append(sum(
            len(np.intersect1d(index.search(state, allowed, LIMIT),
                               ExactIndex(vectors).search(state, allowed, LIMIT)))
            for state in states
        ))
    assert hits == sorted(set(hits))


def test_two_builds_answer_alike_whatever_the_threads_and_leave_those_alone() -> None:
    vectors, states = draw(5_000)
    allowed = everything(vectors)
    before, answers = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            faiss.omp_set_num_threads(threads)
            index = CellIndex(vectors, RetrievalConfig(probes=2))
            assert (torch.get_num_threads(), faiss.omp_get_max_threads()) == (threads, threads)
            answers.append([index.search(state, allowed, LIMIT).tolist() for state in states])
    finally:
        torch.set_num_threads(before)
        faiss.omp_set_num_threads(before)
    assert answers[0] == answers[1]
    exact = [ExactIndex(vectors).search(state, allowed, LIMIT).tolist() for state in states]
    assert answers[0] != exact          # two cells of 71: the answers are those of the index


def test_the_allowed_items_of_each_cell_are_counted() -> None:
    vectors, _ = draw(1_000)
    index = CellIndex(vectors, RetrievalConfig())
    for share in (0.0, 0.2, 0.5, 0.8, 1.0):
        allowed = np.random.default_rng(1).random(len(vectors)) < share
        expected = [int(allowed[index._cells_I == cell].sum()) for cell in range(32)]
        assert index._allowed_sizes(allowed, int(allowed.sum())).tolist() == expected


def test_an_index_tells_its_memory() -> None:
    vectors, _ = draw(5_000)
    index = CellIndex(vectors, RetrievalConfig())
    assert vectors.nbytes < index.size_bytes < 1.5 * vectors.nbytes


@pytest.mark.parametrize("config", [None, RetrievalConfig(exact_items=10, probes=1_000)])
def test_items_that_changed_or_came_are_found_as_if_the_index_were_made_anew(
    config: RetrievalConfig | None,
) -> None:
    rng = np.random.default_rng(4)
    vectors, states = draw(400)
    index = build_index(vectors, config)
    for size, changed in ((400, [7, 8]), (430, [8, 399, *range(400, 430)]), (431, [430])):
        vectors = np.pad(vectors, ((0, size - len(vectors)), (0, 0)))
        vectors[changed] = 3 * draw(len(changed) + 1, seed=size)[0][1:]
        index = with_items(index, vectors, np.array(changed))
        for state in states:
            for share in (1.0, 0.5, 0.02):
                allowed = (rng.random(size) < share) & all_but_the_unknown(size)
                found = index.search(state, allowed, LIMIT)
                exact = ExactIndex(vectors).search(state, allowed, LIMIT)
                assert found.tolist() == exact.tolist()
    assert (config is None) is isinstance(index, ExactIndex)
