"""Interactions of one partition -> one row for each user, oldest event first; and back."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.data.interactions import EVENT_KEY, find_repeats
from engine.data.schema import HISTORIES, INTERACTIONS
from engine.errors import DataError


def build_histories(interactions: pa.Table, item_ids: pa.Array) -> pa.Table:
    """Return the histories of a partition in order of user id.

    Events are ordered by time; equal times by item id. `item_ids` is the catalogue in index order,
    so the first id is item 1. Raises DataError if an event's item is not in it.
    """
    ordered = interactions.sort_by([
        ("user_id", "ascending"), ("timestamp_s", "ascending"), ("item_id", "ascending"),
    ]).combine_chunks()
    places = pc.index_in(ordered["item_id"], item_ids)
    if places.null_count:
        unknown = pc.unique(ordered["item_id"].filter(pc.is_null(places))).to_pylist()
        raise DataError(f"{places.null_count} events of items not in the catalogue: {unknown[:5]}")
    users = pc.dictionary_encode(ordered["user_id"]).combine_chunks()
    codes = users.indices.to_numpy() if len(ordered) else np.zeros(0, np.int32)
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    offsets = pa.array(np.append(starts, len(ordered)), pa.int32())
    columns = {
        "items": pc.add(places, 1), "ratings": ordered["rating"], "labels": ordered["label"],
        "timestamps_s": ordered["timestamp_s"],
    }
    lists = {
        name: pa.ListArray.from_arrays(
            offsets, _whole(column).cast(HISTORIES.field(name).type.value_type)
        )
        for name, column in columns.items()
    }
    user_ids = _whole(ordered["user_id"]).take(pa.array(starts, pa.int64()))
    return pa.table({"user_id": user_ids, **lists}, schema=HISTORIES)


def events_of(histories: pa.Table, item_ids: pa.Array) -> pa.Table:
    """Return the events of histories as INTERACTIONS, in their order."""
    users, items, ratings, labels, times = (
        _whole(histories[name]) for name in HISTORIES.names
    )
    return pa.table({
        "user_id": users.take(pc.list_parent_indices(items)),
        "item_id": item_ids.take(pc.subtract(items.flatten(), 1)),
        "timestamp_s": times.flatten(), "rating": ratings.flatten(), "label": labels.flatten(),
    }, schema=INTERACTIONS)


def fresh_events(events: pa.Table, known: pa.Table) -> pa.Table:
    """Return the events that are not among the known ones: none has their user, item and time."""
    ages = pa.array(np.repeat([0, 1], [len(known), len(events)]).astype(np.int8))
    both = pa.concat_tables([known, events]).append_column("age", ages)
    ordered = both.sort_by([(name, "ascending") for name in (*EVENT_KEY, "age")]).combine_chunks()
    is_fresh = ~find_repeats(ordered, EVENT_KEY) & (_whole(ordered["age"]).to_numpy() == 1)
    return ordered.filter(pa.array(is_fresh)).select(INTERACTIONS.names)


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if isinstance(column, pa.Array):
        return column
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
