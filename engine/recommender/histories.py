"""Stored events, or a guest's items -> the History that the models read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.errors import RequestError
from engine.recommender.feedback import rating_of, read_feedback
from engine.recommender.release import LoadedRelease
from engine.state.histories import PastEvent
from engine.types import History


@dataclass(frozen=True, slots=True)
class GuestItem:
    """One entry of a history that a request brings along."""

    item_id: str
    rating: float | None = None
    label: int | None = None


def stored_history(release: LoadedRelease, events: Sequence[PastEvent]) -> History:
    """Return a stored history, oldest first; items that the release does not know are left out."""
    known = [event for event in events if event.item_id in release.catalogue]
    return History(
        np.array([release.catalogue.index_of(event.item_id) for event in known], np.int32),
        np.array(
            [rating_of(release.source, event.rating, event.label) for event in known], np.float32
        ),
        np.array([event.label for event in known], np.int8),
        np.array([event.timestamp_s for event in known], np.int64),
    )


def guest_history(release: LoadedRelease, items: Sequence[GuestItem]) -> History:
    """Return a guest's history, oldest first; an item without rating and label counts as liked.

    Its times are 0, 1, 2, ...: only the order is known. Raises UnknownItemError, and RequestError
    for a rating or label that is not allowed.
    """
    feedback = []
    for place, item in enumerate(items):
        try:
            label = 1 if item.rating is None and item.label is None else item.label
            feedback.append(read_feedback(release.source, item.rating, label))
        except RequestError as error:
            raise RequestError(f"history.{place}.{error}") from None
    return History(
        np.array([release.catalogue.index_of(item.item_id) for item in items], np.int32),
        np.array(
            [rating_of(release.source, each.rating, each.label) for each in feedback], np.float32
        ),
        np.array([each.label for each in feedback], np.int8),
        np.arange(len(items), dtype=np.int64),
    )
