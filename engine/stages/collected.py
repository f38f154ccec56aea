"""What a service has collected -> a source of the next import (kind "collected").

    interactions/part-*.parquet    user_id, item_id, timestamp, label, rating (if there are any)
    items.parquet                  those of the release, of events and those sent: as they are now
    users.parquet                  profiles likewise; deleted users are in none

One stream reads the database; a part, the items and the profiles are held at a time.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from typing import Any

import pyarrow as pa
from sqlalchemy import Engine

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.config import ColumnsConfig, SourceConfig
from engine.data.catalogue import Catalogue
from engine.data.profiles import Profiles
from engine.data.schema import part_name, users_schema
from engine.errors import DataError
from engine.recommender.feedback import rating_of
from engine.releases.registry import Registry
from engine.state.database import open_existing
from engine.state.deletions import all_deletions
from engine.state.histories import PastEvent, all_events
from engine.state.items import items_since
from engine.state.profiles import sent_profiles

ROWS = "interactions"
PART_ROWS = 1_000_000
ROUNDING = 1e-6


def collect(
    out: str, registry: Registry, release_id: str, database_url: str, part_rows: int = PART_ROWS
) -> Artifact:
    """Return the new artifact "collected" below `out`.

    Raises ConfigError where no service of this version has run on the database, DataError where it
    has no event, ReleaseNotFoundError and ChecksumError.
    """
    registry.verify(release_id)
    settings = {"release_id": release_id, "asked_at_s": time.time()}    # never reused
    write = partial(
        _write, registry=registry, release_id=release_id, database_url=database_url,
        part_rows=part_rows,
    )
    return artifacts.make(out, "collected", settings, [], write)


def source_of(source: SourceConfig, path: str) -> SourceConfig:
    """Return the settings that import what was collected under a release with these settings."""
    columns = ColumnsConfig(
        rating="rating" if source.has_ratings else None,
        label="label" if source.label.kind == "column" else None,
    )
    return source.model_copy(update={"format": "parquet", "path": path, "columns": columns})


def _write(
    uri: str, *, registry: Registry, release_id: str, database_url: str, part_rows: int
) -> Mapping[str, Any]:
    folder, source = registry.folder(release_id), registry.read_config(release_id).source
    database = open_existing(database_url)
    try:
        events = _write_events(uri, database, source, part_rows)
        if not events.number:
            raise DataError(f"no event is stored in {database.url}")
        items, untold = _write_items(uri, database, folder, source.item_fields, events.items)
        users = _write_users(uri, database, folder, source.user_fields)
    finally:
        database.dispose()
    return {
        "events": events.number, "changed_ratings": events.changed_ratings, "items": items,
        "items_without_text": untold, "users": users,
    }


@dataclass(slots=True)
class _Events:
    """What was written of them."""

    number: int = 0
    changed_ratings: int = 0
    items: set[str] = field(default_factory=set)


def _write_events(
    uri: str, database: Engine, source: SourceConfig, part_rows: int
) -> _Events:
    """Write the events in parts."""
    stream, events = all_events(database), _Events()
    for part in count():
        rows = [_row(source, user_id, event, events)
                for user_id, event in islice(stream, part_rows)]
        if not rows:
            break
        table = pa.Table.from_pylist(rows, schema=_schema(source))
        storage.write_table(storage.join(uri, part_name(ROWS, part)), table)
    return events


def _schema(source: SourceConfig) -> pa.Schema:
    rating = [("rating", pa.float64())] if source.has_ratings else []
    return pa.schema([
        ("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.int64()),
        ("label", pa.int8()), *rating,
    ])


def _row(
    source: SourceConfig, user_id: str, event: PastEvent, events: _Events
) -> dict[str, Any]:
    """Return an event as it is imported, and count it."""
    events.number += 1
    events.items.add(event.item_id)
    row = {
        "user_id": user_id, "item_id": event.item_id, "timestamp": event.timestamp_s,
        "label": event.label,
    }
    if not source.has_ratings:
        return row
    rating = _rating(source, event)
    is_changed = event.rating is not None and abs(rating - event.rating) > ROUNDING
    events.changed_ratings += is_changed
    return row | {"rating": rating}


def _rating(source: SourceConfig, event: PastEvent) -> float:
    """Return an event's rating; another one where ratings make labels and its own makes another
    label than it has: the label was given, too, or the threshold was another.
    """
    rating = event.rating
    if source.label.kind == "threshold" and rating is not None:
        is_same = (rating >= source.label.threshold) == bool(event.label)
        rating = rating if is_same else None
    found = rating_of(source, rating, event.label)
    return min(max(found, source.rating_min), source.rating_max)    # seeds went through float32


def _write_items(
    uri: str, database: Engine, folder: str, fields: Sequence[str], of_events: set[str]
) -> tuple[int, int]:
    """Write the items; return how many there are, and of how many nothing but events is known: of
    another release, or withdrawn. They are called by their ids.
    """
    table = storage.read_table(storage.join(folder, "catalogue.parquet"))
    catalogue = Catalogue.from_table(table, fields)
    rows = {
        item_id: {"item_id": item_id, "title": catalogue.titles[item], **catalogue.values_of(item)}
        for item, item_id in enumerate(catalogue.item_ids) if item
    }
    for stored in items_since(database, 0, ""):
        item = stored.item
        if item.title is not None:      # else withdrawn as it was
            rows[item.item_id] = {
                "item_id": item.item_id, "title": item.title,
                **{name: item.fields.get(name, ()) for name in fields},
            }
    untold = of_events - rows.keys()
    for item_id in untold:
        rows[item_id] = {"item_id": item_id, "title": item_id, **dict.fromkeys(fields, ())}
    schema = pa.schema([
        ("item_id", pa.string()), ("title", pa.string()),
        *[(name, pa.list_(pa.string())) for name in fields],
    ])
    values = [rows[item_id] for item_id in sorted(rows)]
    storage.write_table(
        storage.join(uri, "items.parquet"), pa.Table.from_pylist(values, schema=schema)
    )
    return len(rows), len(untold)


def _write_users(uri: str, database: Engine, folder: str, fields: Sequence[str]) -> int:
    known = Profiles.from_table(storage.read_table(storage.join(folder, "users.parquet")), fields)
    rows = {
        profile.user_id: {"user_id": profile.user_id, **(profile.fields or {})} for profile in known
    }
    for user_id in all_deletions(database):
        rows.pop(user_id, None)
    for user_id, sent in sent_profiles(database):       # of nobody who was deleted since
        rows[user_id] = {"user_id": user_id, **{name: sent.get(name, ()) for name in fields}}
    values = [rows[user_id] for user_id in sorted(rows)]
    table = pa.Table.from_pylist(values, schema=users_schema(tuple(fields)))
    storage.write_table(storage.join(uri, "users.parquet"), table)
    return len(rows)
