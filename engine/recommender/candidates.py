"""User state -> the items to rank: top-k over the catalogue, filters first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from engine.errors import RequestError
from engine.recommender.release import LoadedRelease
from engine.types import History, IntArray, Profile


@dataclass(frozen=True, slots=True)
class Filters:
    """Which items may be answered."""

    exclude_seen: bool = False
    """Leave out the items of the user's stored events, or of the guest's history."""
    exclude_items: Sequence[str] = ()
    """Leave out these; ids that the catalogue lacks are no error."""
    fields: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Keep items that have, in each field named, one of the values."""

    def without(self, item_ids: Sequence[str]) -> "Filters":
        """Return the same filters that leave out these items, too."""
        return replace(self, exclude_items=[*self.exclude_items, *item_ids])


def allowed_items(
    release: LoadedRelease, history: History, filters: Filters
) -> npt.NDArray[np.bool_]:
    """Tell for each item of the catalogue whether it passes; one that is not offered never does."""
    allowed = release.offered_I.copy()
    for name, values in filters.fields.items():
        allowed &= _having(release, name, values)
    if filters.exclude_seen:
        allowed[history.items] = False
    known = [item_id for item_id in filters.exclude_items if item_id in release.catalogue]
    allowed[[release.catalogue.index_of(item_id) for item_id in known]] = False
    return allowed


def _having(
    release: LoadedRelease, name: str, values: Sequence[str]
) -> npt.NDArray[np.bool_]:
    index = release.items_by_value
    if name not in index:
        raise RequestError(f"filters.fields.{name}: no such item field; known are {sorted(index)}")
    having = np.zeros(len(release.catalogue), bool)
    for value in values:
        having[index[name].get(value, [])] = True
    return having


def named_items(release: LoadedRelease, item_ids: Sequence[str]) -> IntArray:
    """Return the indices of items by id; UnknownItemError names one that is not there."""
    return np.array([release.catalogue.index_of(item_id) for item_id in item_ids], np.int32)


def find_candidates(
    release: LoadedRelease, history: History, profile: Profile, filters: Filters, limit: int
) -> IntArray:
    """Return the `limit` allowed items of largest retrieval score, best first.

    There are fewer only where fewer are allowed.
    """
    allowed = allowed_items(release, history, filters)
    state_D = release.crm.retrieval_states([history], [profile])[0]
    return release.item_index.search(state_D, allowed, limit)


def popular_items(
    release: LoadedRelease, history: History, filters: Filters, limit: int
) -> IntArray:
    """Return the `limit` most popular allowed items, best first."""
    allowed = allowed_items(release, history, filters)
    top = release.popularity.top
    return np.asarray(top[allowed[top]][:limit], np.int32)
