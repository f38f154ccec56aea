"""Ranking metrics against scikit-learn and examples by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from engine.errors import DataError
from engine.metrics import ranking
from engine.metrics.estimates import draw_users
from engine.metrics.ranking import Queries


def two_queries() -> Queries:
    return Queries.of(
        np.array(["ann", "bob"]),
        [np.array([5, 3, 9, 1]), np.array([2, 4])],
        [np.array([3, 1, 8]), np.array([7])],
    )


def test_an_example_by_hand():
    queries = two_queries()
    first, second, third = 1 / np.log2(np.array([2, 3, 4]))
    at_2_and_4 = second + 1 / np.log2(5)
    assert ranking.ndcg(queries) == pytest.approx([at_2_and_4 / (first + second + third), 0])
    assert ranking.recall(queries, 2) == pytest.approx([1 / 3, 0])
    assert ranking.recall(queries, 10) == pytest.approx([2 / 3, 0])
    assert ranking.reciprocal_rank(queries) == pytest.approx([1 / 2, 0])
    assert ranking.coverage(queries, num_items=12, k=2) == 4 / 12


def test_a_rare_item_is_a_surprise_of_as_many_bits_as_its_share_says():
    events = np.zeros(10, np.int64)
    events[1:] = [0, 0, 0, 6, 0, 0, 0, 0, 0]          # with one added to each: 1 and 7 of 15
    queries = Queries.of(np.array([0]), [np.array([4, 9])], [np.array([1])])
    assert ranking.novelty(queries, events) == pytest.approx([-np.log2(7 / 15 / 15) / 2])


@given(st.integers(0, 10_000), st.integers(1, 12))
def test_ndcg_equals_scikit_learn(seed, num_relevant):
    rng = np.random.default_rng(seed)
    items = rng.permutation(np.arange(1, 31))
    liked = rng.choice(items, num_relevant, replace=False)
    queries = Queries.of(np.array([0]), [items], [liked])
    gains = np.isin(items, liked)[None].astype(float)
    scores = -np.arange(30.0)[None]
    assert ranking.ndcg(queries)[0] == pytest.approx(ndcg_score(gains, scores, k=10))


def test_measured_values_are_means_over_queries_and_draws_take_users_whole():
    rng = np.random.default_rng(0)
    users = np.array([0, 0, 0, 1, 2, 2, 3])
    lists = [rng.permutation(np.arange(1, 61)) for _ in users]
    liked = [rng.choice(np.arange(1, 61), 4, replace=False) for _ in users]
    queries = Queries.of(users, lists, liked)
    events = rng.integers(0, 9, size=61)
    measured = ranking.measure(queries, events, num_draws=20, seed=5)
    assert list(measured) == list(ranking.METRICS)
    each = ranking.recall(queries, 10)
    assert measured["recall@10"].value == pytest.approx(each.mean())
    for draw, counts_U in enumerate(next(draw_users(4, 20, 5, chunk=20)).astype(int)):
        rows = np.repeat(np.arange(7), counts_U[users])
        assert measured["recall@10"].draws_D[draw] == pytest.approx(each[rows].mean())
    same = ranking.measure(queries, events, num_draws=20, seed=5)
    for name, estimate in measured.items():
        interval = estimate.minus(same[name]).interval()
        assert (interval.low, interval.value, interval.high) == (0, 0, 0)


def test_a_query_without_a_liked_item_is_refused():
    with pytest.raises(DataError, match="query 1 of user 'bob' has no liked item"):
        Queries.of(np.array(["ann", "bob"]), [np.array([1])] * 2, [np.array([1]), np.array([])])


def test_no_queries_are_refused():
    with pytest.raises(DataError, match="no queries"):
        ranking.measure(Queries.of(np.array([]), [], []), np.ones(3), num_draws=9, seed=1)
