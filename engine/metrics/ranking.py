"""Metrics of ranked lists against the items that the user then liked, with draws over users.

A query is one request: the state of a user at a moment. Letters here: Q queries, K places of a
list, U users, D draws. A metric of a query is averaged over queries; users are drawn with all
their queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import DataError
from engine.metrics.estimates import Estimate, ratio, ratios_of_sums
from engine.types import FloatArray, IntArray

DEPTH = 200
"""Places of a list that are looked at."""
SHOWN = 10
"""Places that a user would see: nDCG, coverage and novelty."""
RECALL_AT = (10, 50, 200)
METRICS = ("ndcg@10", *(f"recall@{k}" for k in RECALL_AT), "mrr", "novelty@10")


@dataclass(frozen=True, slots=True)
class Queries:
    """Ranked lists of several queries."""

    users_Q: IntArray
    """0 to num_users - 1; every user has a query."""
    num_users: int
    lists_QK: IntArray
    """Items, best first; 0 pads a shorter list."""
    is_hit_QK: npt.NDArray[np.bool_]
    """Whether the user liked the item."""
    relevant_Q: IntArray
    """Items that the user liked, at least one, found or not."""

    @staticmethod
    def of(
        users: IntArray, lists: Sequence[IntArray], relevant: Sequence[IntArray],
        depth: int = DEPTH,
    ) -> "Queries":
        """Build from user codes or ids, lists of items and the items liked.

        Raises DataError for a query without a liked item: it has no metric.
        """
        found, codes = np.unique(users, return_inverse=True)
        lists_QK = np.zeros((len(lists), depth), np.int64)
        is_hit_QK = np.zeros((len(lists), depth), bool)
        for query, (items, liked) in enumerate(zip(lists, relevant, strict=True)):
            if not len(liked):
                raise DataError(f"query {query} of user {str(users[query])!r} has no liked item")
            top = np.asarray(items[:depth])
            lists_QK[query, : len(top)] = top
            is_hit_QK[query, : len(top)] = np.isin(top, liked)
        sizes = np.array([len(np.unique(liked)) for liked in relevant], np.int64)
        return Queries(codes.astype(np.int64), len(found), lists_QK, is_hit_QK, sizes)

    def __len__(self) -> int:
        return len(self.users_Q)


def ndcg(queries: Queries, k: int = SHOWN) -> FloatArray:
    """Return each query's gain over the best possible one [Q], discounted by log2(place + 1)."""
    discounts = 1 / np.log2(np.arange(k) + 2.0)
    ideal = np.concatenate([[0.0], np.cumsum(discounts)])
    gains: FloatArray = queries.is_hit_QK[:, :k] @ discounts[: queries.is_hit_QK.shape[1]]
    best: FloatArray = ideal[np.minimum(queries.relevant_Q, k)]
    return np.asarray(gains / best)


def recall(queries: Queries, k: int) -> FloatArray:
    """Return the share of each query's liked items that are among the best k [Q]."""
    found: FloatArray = queries.is_hit_QK[:, :k].sum(axis=1) / queries.relevant_Q
    return found


def reciprocal_rank(queries: Queries) -> FloatArray:
    """Return 1 / place of the first liked item [Q]; 0 where the list has none."""
    first = queries.is_hit_QK.argmax(axis=1)
    return np.where(queries.is_hit_QK.any(axis=1), 1 / (first + 1.0), 0.0)


def novelty(queries: Queries, events_I: IntArray, k: int = SHOWN) -> FloatArray:
    """Return the mean surprise of the best k [Q], in bits: -log2 of an item's share of all events.

    events_I: events of each item in training, by index; one event is added to each item.
    """
    surprise_I = -np.log2((events_I + 1.0) / (events_I[1:] + 1.0).sum())
    shown_QK = queries.lists_QK[:, :k]
    is_item = shown_QK > 0
    return ratio((surprise_I[shown_QK] * is_item).sum(axis=1), is_item.sum(axis=1))


def coverage(queries: Queries, num_items: int, k: int = SHOWN) -> float:
    """Return the share of the catalogue's items that are among the best k of any query."""
    shown = np.unique(queries.lists_QK[:, :k])
    return float((shown > 0).sum() / num_items)


def measure(
    queries: Queries, events_I: IntArray, *, num_draws: int, seed: int
) -> dict[str, Estimate]:
    """Return every metric of METRICS, the mean over queries that have it, with draws over users.

    Two models measured on the same queries with one seed are paired: subtract their estimates.
    """
    if not len(queries):
        raise DataError("no queries to measure")
    values = {
        "ndcg@10": ndcg(queries), "mrr": reciprocal_rank(queries),
        "novelty@10": novelty(queries, events_I),
        **{f"recall@{k}": recall(queries, k) for k in RECALL_AT},
    }
    tops_UM, bottoms_UM = (
        np.stack([_by_user(queries, each) for each in columns], axis=1) for columns in (
            [np.nan_to_num(values[name]) for name in METRICS],
            [~np.isnan(values[name]) for name in METRICS],
        )
    )
    estimates = ratios_of_sums(tops_UM, bottoms_UM, num_draws=num_draws, seed=seed)
    return dict(zip(METRICS, estimates, strict=True))


def _by_user(queries: Queries, values_Q: npt.NDArray[Any]) -> FloatArray:
    """Return the sum of each user's values [U]."""
    return np.bincount(queries.users_Q, values_Q, queries.num_users).astype(np.float64)
