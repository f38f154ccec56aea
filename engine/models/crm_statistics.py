"""Counts of events per item before the cut -> smoothed rates that a cold item has too.

Training rows of a partition read the counts of all other partitions, so that no row's own label
is among its features.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from engine.types import FloatArray, History, IntArray

STRENGTH = 5.0
"""Events that the prior is worth."""

COLUMNS = 3
"""events, positives, sum of ratings"""

EVERY = slice(None)


def count_events(histories: Iterable[History], size: int) -> FloatArray:
    """Return the counts [items + 1, 3] of some histories, by one pass over their events."""
    histories = list(histories)
    if not histories:
        return np.zeros((size, COLUMNS))
    items = np.concatenate([each.items for each in histories])
    return np.stack([
        np.bincount(items, weights, size).astype(np.float64) for weights in (
            None, np.concatenate([each.labels for each in histories]),
            np.concatenate([each.ratings for each in histories]),
        )
    ], axis=1)


@dataclass(frozen=True, slots=True)
class ItemStatistics:
    """Counts by item index I: [I, 3] events, positives, sum of ratings; unseen items have zeros."""

    counts_I3: FloatArray
    mean_label: float
    mean_rating: float

    @classmethod
    def of(cls, counts_I3: FloatArray) -> "ItemStatistics":
        """Return statistics with the counts' own means as priors."""
        events, positives, ratings = counts_I3.sum(axis=0)
        known = max(events, 1.0)
        return cls(counts_I3, float(positives / known), float(ratings / known))

    def label_rates(self, items: IntArray | slice = EVERY) -> FloatArray:
        """Return the smoothed share of positives of some items, or of all."""
        prior = STRENGTH * self.mean_label
        return (self.counts_I3[items, 1] + prior) / (self.counts_I3[items, 0] + STRENGTH)

    def ratings(self, items: IntArray | slice = EVERY) -> FloatArray:
        """Return the smoothed mean rating of some items, or of all."""
        prior = STRENGTH * self.mean_rating
        return (self.counts_I3[items, 2] + prior) / (self.counts_I3[items, 0] + STRENGTH)
