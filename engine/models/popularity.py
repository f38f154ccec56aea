"""Item popularity: counts of events before T1 -> the floor of every comparison, and of serving.

    popularity.safetensors   {"scores" float32, "positives" int64, "events" int64}, all [items + 1]

Position 0 is the unknown item. A score is a log-odds where feedback is explicit (shrunken share of
positives) and a log count where it is implicit: every event is a positive, so a share says nothing.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine import storage
from engine.errors import DataError
from engine.types import FloatArray, IntArray

FILE = "popularity.safetensors"


@dataclass(frozen=True, slots=True)
class Popularity:
    """What is known of each item without knowing the user."""

    scores: FloatArray
    """Ranking score by item index [items + 1]; a logit if feedback is explicit."""
    positives: IntArray
    """Positive events by item index [items + 1]."""
    events: IntArray
    """All events by item index [items + 1]."""

    @staticmethod
    def fit(
        positives: IntArray, events: IntArray, *, smoothing: float, implicit: bool
    ) -> "Popularity":
        """Score items from their counts.

        explicit: logit of (positives + smoothing * mean) / (events + smoothing), mean being the
        share of positives over all events. implicit: ln(positives + 1).
        """
        positives, events = np.asarray(positives, np.int64), np.asarray(events, np.int64)
        if positives.shape != events.shape or (positives > events).any():
            raise DataError("an item has more positives than events, or lengths differ")
        if implicit:
            scores = np.log1p(positives)
        else:
            mean = _mean_share(positives, events)
            scores = _logit((positives + smoothing * mean) / (events + smoothing))
        return Popularity(scores.astype(np.float32), positives, events)

    def with_unseen(self, count: int, *, implicit: bool) -> "Popularity":
        """Return the same with `count` more items of which no event is known."""
        none = np.zeros(count, np.int64)
        mean = _mean_share(self.positives, self.events)
        score = 0.0 if implicit else _logit(mean)       # as `fit` gives them
        return Popularity(
            np.concatenate([self.scores, np.full(count, score, np.float32)]),
            np.concatenate([self.positives, none]), np.concatenate([self.events, none]),
        )

    @staticmethod
    def load(uri: str) -> "Popularity":
        """Read popularity.safetensors."""
        tensors = storage.read_tensors(uri)
        return Popularity(tensors["scores"], tensors["positives"], tensors["events"])

    def save(self, uri: str) -> None:
        """Write popularity.safetensors."""
        storage.write_tensors(uri, {
            "scores": self.scores, "positives": self.positives, "events": self.events,
        })

    @property
    def top(self) -> IntArray:
        """Return all items but the unknown one, most positives first; ties by score, then index."""
        items = np.arange(1, len(self.positives))
        order = np.lexsort((items, -self.scores[1:], -self.positives[1:]))
        return items[order]


def _mean_share(positives: IntArray, events: IntArray) -> np.float64:
    return np.float64((positives.sum() + 0.5) / (events.sum() + 1))


def _logit(share: FloatArray | np.float64) -> Any:
    return np.log(share) - np.log1p(-share)


def count_events(
    items: IntArray, labels: IntArray, timestamps_s: IntArray, *, before_s: int, num_items: int
) -> tuple[IntArray, IntArray]:
    """Return positives and events by item [num_items] among the events strictly before a time."""
    known = timestamps_s < before_s
    items, labels = items[known], labels[known]
    events = np.bincount(items, minlength=num_items)
    return np.bincount(items[labels == 1], minlength=num_items), events
