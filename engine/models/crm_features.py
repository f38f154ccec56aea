"""(History, Profile, candidates) -> arrays; the one path of training and serving.

    events     every event of a user as item, rating code, residuals             E
    requests   one (user, history prefix): what does not depend on a candidate    R
    rows       one (request, candidate) with the events relevant to it            B

`build_rows` makes them for one user, `join` puts users together, `CRMRows.batch` picks rows and
gathers the events that a forward pass reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.config import CRMConfig, SourceConfig
from engine.data.catalogue import Catalogue
from engine.models.crm_statistics import STRENGTH, ItemStatistics
from engine.models.crm_vocabulary import FieldTable
from engine.retrieval.behaviors import retrieve_behaviors
from engine.types import FloatArray, History, IntArray

USER_DENSE = 9
ROW_DENSE = 9
RESIDUALS = 2
"""Rating and label of an event, each minus the item's smoothed mean."""
NEWEST = 10
"""Events of the short-term statistics."""


@dataclass(frozen=True, slots=True)
class ItemTable:
    """What the CRM knows of every item of a catalogue, by item index I (0 is unknown)."""

    rows_I: IntArray
    """Row in the id embedding; 0 for an item that training never saw."""
    codes_IK: IntArray
    weights_IK: FloatArray
    text_IT: FloatArray
    dense_I3: FloatArray
    """Smoothed share of positives and mean rating as offsets from the mean, log count."""

    def put(self, places: IntArray, rows: "ItemTable", size: int) -> "ItemTable":
        """Return a copy of `size` items with these rows at these places."""
        found = {}
        for name in (each.name for each in fields(self)):
            old, new = getattr(self, name), getattr(rows, name)
            if old.ndim > 1:        # codes: as wide as needed
                missing = new.shape[1] - old.shape[1]
                old = np.pad(old, ((0, 0), (0, max(0, missing))))
                new = np.pad(new, ((0, 0), (0, max(0, -missing))))
            whole = np.zeros((size, *old.shape[1:]), old.dtype)
            whole[: len(old)], whole[places] = old, new
            found[name] = whole
        return ItemTable(**found)


@dataclass(frozen=True, slots=True)
class FeatureSpace:
    """Everything beside user and history that features depend on."""

    crm: CRMConfig
    source: SourceConfig
    user_fields: FieldTable
    items: ItemTable
    statistics: ItemStatistics
    """By item index of the same catalogue as `items`."""


@dataclass(frozen=True, slots=True)
class CRMBatch:
    """Input of one forward pass. Item indices are the catalogue's; 0 and code 0 are padding."""

    users_R: IntArray
    codes_RK: IntArray
    weights_RK: FloatArray
    recent_items_RL: IntArray
    recent_levels_RL: IntArray
    recent_residuals_RL2: FloatArray
    dense_RF: FloatArray
    requests_B: IntArray
    items_B: IntArray
    behavior_items_BS: IntArray
    behavior_levels_BS: IntArray
    behavior_residuals_BS2: FloatArray
    cosines_BS: FloatArray
    dense_BF: FloatArray
    labels_B: FloatArray


@dataclass(frozen=True, slots=True)
class CRMRows:
    """Requests and rows over one flat array of events."""

    event_items_E: IntArray
    event_levels_E: IntArray
    event_residuals_E2: FloatArray
    users_R: IntArray
    codes_RK: IntArray
    weights_RK: FloatArray
    starts_R: IntArray
    """First event of the request's user."""
    lengths_R: IntArray
    dense_RF: FloatArray
    requests_B: IntArray
    items_B: IntArray
    labels_B: FloatArray
    behaviors_BS: IntArray
    """Positions counted from the user's first event; -1 pads."""
    cosines_BS: FloatArray
    dense_BF: FloatArray

    def __len__(self) -> int:
        return len(self.items_B)

    def batch(self, picked: IntArray, max_recent: int) -> CRMBatch:
        """Return the rows at some positions, each request once."""
        requests, requests_B = np.unique(self.requests_B[picked], return_inverse=True)
        recent = _recent_positions(self.lengths_R[requests], max_recent)
        recent = np.where(recent < 0, -1, recent + self.starts_R[requests][:, None])
        behaviors = self.behaviors_BS[picked]
        behaviors = behaviors[:, : max(1, int((behaviors >= 0).sum(axis=1).max(initial=0)))]
        starts = self.starts_R[self.requests_B[picked]]
        gathered = np.where(behaviors < 0, -1, behaviors + starts[:, None])
        return CRMBatch(
            self.users_R[requests], self.codes_RK[requests], self.weights_RK[requests],
            *self._events_at(recent), self.dense_RF[requests],
            requests_B, self.items_B[picked], *self._events_at(gathered),
            self.cosines_BS[picked][:, : behaviors.shape[1]], self.dense_BF[picked],
            self.labels_B[picked],
        )

    def _events_at(self, places: IntArray) -> tuple[IntArray, IntArray, FloatArray]:
        """Return items, levels and residuals; zeros where the place is -1."""
        if not len(self.event_items_E):
            shape = places.shape
            return (np.zeros(shape, np.int32), np.zeros(shape, np.int32),
                    np.zeros((*shape, RESIDUALS), np.float32))
        seen = places >= 0
        safe = np.where(seen, places, 0)
        return (
            self.event_items_E[safe] * seen, self.event_levels_E[safe] * seen,
            self.event_residuals_E2[safe] * seen[..., None].astype(np.float32),
        )


def item_table(
    catalogue: Catalogue, vectors_IT: FloatArray, item_fields: FieldTable,
    statistics: ItemStatistics, rows_I: IntArray,
) -> ItemTable:
    """Return the features of a catalogue's items."""
    values = [catalogue.values_of(item) for item in range(1, len(catalogue))]
    codes, weights = item_fields.encode_all([None, *values])
    weights[0] = 0
    dense = np.stack([
        4 * (statistics.label_rates() - statistics.mean_label),
        2 * (statistics.ratings() - statistics.mean_rating),
        np.log1p(statistics.counts_I3[:, 0]) / 3 - 1,
    ], axis=1)
    return ItemTable(
        np.asarray(rows_I, np.int32), codes, weights, np.asarray(vectors_IT, np.float32),
        dense.astype(np.float32),
    )


def level_codes(history: History, source: SourceConfig) -> IntArray:
    """Return 1 and up: rating level and label of each event as one code."""
    span = source.rating_max - source.rating_min
    levels = np.round((history.ratings - source.rating_min) / span * (source.rating_levels - 1))
    levels = np.clip(levels, 0, source.rating_levels - 1).astype(np.int32)
    return 1 + 2 * levels + np.asarray(history.labels, np.int32)


def num_levels(source: SourceConfig) -> int:
    """Return the number of level codes, padding included."""
    return 1 + 2 * source.rating_levels


def build_rows(
    space: FeatureSpace, user: int, codes: tuple[IntArray, FloatArray], history: History,
    candidates: IntArray, lengths: IntArray, labels: IntArray | None = None,
) -> CRMRows:
    """Return the rows of one user.

    `lengths` gives for each candidate how many events of `history` it may see. `codes` are the
    profile's codes and weights [1, K]. Labels are 0 where there are none.
    """
    residuals = _residuals(history, space)
    prefixes, requests_B = np.unique(lengths, return_inverse=True)
    behaviors, cosines = retrieve_behaviors(
        space.items.text_IT, history.items, candidates, lengths,
        max_behaviors=space.crm.max_behaviors, max_history=space.crm.max_history,
    )
    count = len(prefixes)
    return CRMRows(
        np.asarray(history.items, np.int32), level_codes(history, space.source), residuals,
        np.full(count, user, np.int32), np.repeat(codes[0], count, axis=0),
        np.repeat(codes[1], count, axis=0), np.zeros(count, np.int64),
        prefixes.astype(np.int32), _user_dense(history, residuals, prefixes, space),
        requests_B.astype(np.int32), np.asarray(candidates, np.int32),
        np.zeros(len(candidates), np.float32) if labels is None else labels.astype(np.float32),
        behaviors, cosines,
        _row_dense(history, residuals, candidates, behaviors, cosines, space),
    )


def join(parts: Sequence[CRMRows]) -> CRMRows:
    """Return the rows of several users (or partitions) as one; at least one part."""
    merged: dict[str, Any] = {
        field.name: np.concatenate(_pad_widths([getattr(part, field.name) for part in parts]))
        for field in fields(CRMRows)
    }
    events = np.cumsum([0, *(len(part.event_items_E) for part in parts[:-1])])
    requests = np.cumsum([0, *(len(part.users_R) for part in parts[:-1])])
    return replace(
        CRMRows(**merged),
        starts_R=np.concatenate([
            part.starts_R + shift for part, shift in zip(parts, events, strict=True)
        ]),
        requests_B=np.concatenate([
            part.requests_B + shift for part, shift in zip(parts, requests, strict=True)
        ]),
    )


def _pad_widths(arrays: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Return arrays of equal width: profile codes differ in their number."""
    if arrays[0].ndim != 2 or len({array.shape[1] for array in arrays}) == 1:
        return list(arrays)
    width = max(array.shape[1] for array in arrays)
    return [np.pad(array, ((0, 0), (0, width - array.shape[1]))) for array in arrays]


def _recent_positions(lengths_R: IntArray, max_recent: int) -> IntArray:
    """Return positions [R, L] of the newest events, oldest first; -1 pads."""
    width = max(1, min(max_recent, int(lengths_R.max(initial=0))))
    seen = np.minimum(lengths_R, width)[:, None]
    steps = np.arange(width)[None]
    return np.where(steps < seen, lengths_R[:, None] - seen + steps, -1)


def _residuals(history: History, space: FeatureSpace) -> FloatArray:
    """Return rating and label of each event minus the item's smoothed means [L, 2]."""
    span = space.source.rating_max - space.source.rating_min
    ratings = (history.ratings - space.statistics.ratings(history.items)) * (2 / span)
    labels = history.labels - space.statistics.label_rates(history.items)
    return np.stack([ratings, labels], axis=1).astype(np.float32)


def _user_dense(
    history: History, residuals_L2: FloatArray, prefixes: IntArray, space: FeatureSpace
) -> FloatArray:
    """Return statistics of each history prefix, of its newest `max_history` events [R, USER_DENSE].
    """
    span = space.source.rating_max - space.source.rating_min
    ratings = (np.asarray(history.ratings, np.float64) - space.statistics.mean_rating) * 2 / span
    labels = np.asarray(history.labels, np.float64) - space.statistics.mean_label
    values = np.stack([ratings, labels, ratings**2, *residuals_L2.T.astype(np.float64)], axis=1)
    sums = np.concatenate([np.zeros((1, 5)), np.cumsum(values, axis=0)])
    first = np.maximum(prefixes - space.crm.max_history, 0)      # as if older events were not there
    newest = sums[prefixes] - sums[np.maximum(prefixes - NEWEST, first)]
    seen = (prefixes - first)[:, None].astype(np.float64)
    means = (sums[prefixes] - sums[first]) / (seen + STRENGTH)
    newest_means = newest / (np.minimum(seen, NEWEST) + STRENGTH)
    return np.concatenate([
        np.log1p(seen) / 3 - 1, seen == 0, means * 3, newest_means[:, 3:] * 3,
    ], axis=1).astype(np.float32)


def _row_dense(
    history: History, residuals_L2: FloatArray, candidates: IntArray, behaviors_BS: IntArray,
    cosines_BS: FloatArray, space: FeatureSpace,
) -> FloatArray:
    """Return the candidate's statistics and those of the events relevant to it [B, ROW_DENSE]."""
    seen = (behaviors_BS >= 0).astype(np.float32)
    if len(history):
        residuals = residuals_L2[np.maximum(behaviors_BS, 0)] * seen[..., None]
        same = (history.items[np.maximum(behaviors_BS, 0)] == candidates[:, None]) * seen
    else:
        residuals, same = np.zeros((*behaviors_BS.shape, 2), np.float32), seen
    near = np.maximum(cosines_BS, 0) ** 2 * seen
    weighted = (residuals * near[..., None]).sum(1) / (near.sum(1, keepdims=True) + 1)
    plain = residuals.sum(1) / (seen.sum(1, keepdims=True) + STRENGTH)
    return np.concatenate([
        space.items.dense_I3[candidates], weighted * 3, plain * 3,
        cosines_BS.max(axis=1, keepdims=True), same.max(axis=1, keepdims=True),
    ], axis=1).astype(np.float32)
