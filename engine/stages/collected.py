"""What a service has collected -> a source of the next import (kinds "collected" and "drop").

    interactions/part-*.parquet    user_id, item_id, timestamp, label, rating (if there are any)
    items.parquet                  those of the release, of events and those sent: as they are now
    users.parquet                  profiles likewise; deleted users are in none

A drop is one day: events by the time of their receipt, the items and profiles of these, and those
that were sent and that the release does not have, or otherwise.

One stream reads the database; a part, the items and the profiles are held at a time.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
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
from engine.data.schema import items_schema, part_name, users_schema
from engine.errors import ConfigError, DataError
from engine.recommender.feedback import rating_of
from engine.releases.registry import Registry
from engine.state.database import open_existing
from engine.state.deletions import all_deletions
from engine.state.histories import PastEvent, all_events, count_received, received_events
from engine.state.items import items_since
from engine.state.profiles import sent_profiles

ROWS = "interactions"
PART_ROWS = 1_000_000
ROUNDING = 1e-6
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Day:
    """Events that were received at since < time <= until."""

    since_s: int
    until_s: int


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
        _write, registry=registry, release_id=release_id, database_url=database_url, day=None,
        part_rows=part_rows,
    )
    return artifacts.make(out, "collected", settings, [], write)


def collect_day(
    out: str, registry: Registry, release_id: str, database_url: str, *, since_s: int,
    until_s: int, part_rows: int = PART_ROWS,
) -> Artifact:
    """Return the artifact "drop" below `out`: what came after `since_s` and up to `until_s`, which
    may be nothing.

    Equal bounds find the same drop again, unless one of its users was deleted meanwhile. Raises
    ConfigError, also for bounds in the wrong order, ReleaseNotFoundError and ChecksumError.
    """
    if not 0 <= since_s <= until_s:
        raise ConfigError(f"a day from {since_s} to {until_s}: 0 <= since <= until must hold")
    registry.verify(release_id)
    database = open_existing(database_url)
    try:
        number = count_received(database, since_s, until_s)
    finally:
        database.dispose()
    settings = {
        "release_id": release_id, "since_s": since_s, "until_s": until_s, "events": number,
    }
    write = partial(
        _write, registry=registry, release_id=release_id, database_url=database_url,
        day=_Day(since_s, until_s), part_rows=part_rows,
    )
    return artifacts.make(out, "drop", settings, [], write)


def source_of(source: SourceConfig, path: str) -> SourceConfig:
    """Return the settings that import what was collected under a release with these settings."""
    columns = ColumnsConfig(
        rating="rating" if source.has_ratings else None,
        label="label" if source.label.kind == "column" else None,
    )
    return source.model_copy(update={"format": "parquet", "path": path, "columns": columns})


def write_source(uri: str, events: pa.Table, items: pa.Table, users: pa.Table) -> None:
    """Write events (INTERACTIONS), items and users of an import as a source, for `source_of`."""
    rows = events.rename_columns(["user_id", "item_id", "timestamp", "rating", "label"])
    storage.write_table(storage.join(uri, part_name(ROWS, 0)), rows)
    storage.write_table(storage.join(uri, "items.parquet"), items.drop_columns(["item"]))
    storage.write_table(storage.join(uri, "users.parquet"), users)


def _write(
    uri: str, *, registry: Registry, release_id: str, database_url: str, day: _Day | None,
    part_rows: int,
) -> Mapping[str, Any]:
    folder, source = registry.folder(release_id), registry.read_config(release_id).source
    database = open_existing(database_url)
    try:
        stream = (
            all_events(database) if day is None
            else received_events(database, day.since_s, day.until_s)
        )
        events = _write_events(uri, stream, source, part_rows)
        if day is None and not events.number:
            raise DataError(f"no event is stored in {database.url}")
        is_day = day is not None
        items, untold = _write_items(
            uri, database, folder, source.item_fields, events.items, is_day=is_day
        )
        users = _write_users(
            uri, database, folder, source.user_fields, events.users, is_day=is_day
        )
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
    users: set[str] = field(default_factory=set)


def _write_events(
    uri: str, stream: Iterator[tuple[str, PastEvent]], source: SourceConfig, part_rows: int
) -> _Events:
    """Write the events in parts; without any, one part without rows."""
    events = _Events()
    for part in count():
        rows = [_row(source, user_id, event, events)
                for user_id, event in islice(stream, part_rows)]
        if part and not rows:
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


def _row(source: SourceConfig, user_id: str, event: PastEvent, events: _Events) -> Row:
    """Return an event as it is imported, and count it."""
    events.number += 1
    events.items.add(event.item_id)
    events.users.add(user_id)
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
    uri: str, database: Engine, folder: str, fields: Sequence[str], of_events: set[str], *,
    is_day: bool,
) -> tuple[int, int]:
    """Write the items; return how many there are, and of how many nothing but events is known: of
    another release, or withdrawn. They are called by their ids.
    """
    table = storage.read_table(storage.join(folder, "catalogue.parquet"))
    catalogue = Catalogue.from_table(table, fields)
    known = {
        item_id: {"item_id": item_id, "title": catalogue.titles[item], **catalogue.values_of(item)}
        for item, item_id in enumerate(catalogue.item_ids) if item
    }
    sent = {
        stored.item.item_id: {
            "item_id": stored.item.item_id, "title": stored.item.title,
            **stored.item.values_of(fields),
        }
        for stored in items_since(database, 0, "")
        if stored.item.title is not None        # else withdrawn as it was
    }
    rows = known | sent
    untold = of_events - rows.keys()
    if is_day:
        rows = _of_day(rows, known, of_events)
    for item_id in untold:
        rows[item_id] = {"item_id": item_id, "title": item_id, **dict.fromkeys(fields, ())}
    schema = items_schema(tuple(fields)).remove(0)      # the next import numbers them
    _write_rows(storage.join(uri, "items.parquet"), rows, schema)
    return len(rows), len(untold)


def _write_users(
    uri: str, database: Engine, folder: str, fields: Sequence[str], of_events: set[str], *,
    is_day: bool,
) -> int:
    """Write the profiles; return how many there are."""
    table = storage.read_table(storage.join(folder, "users.parquet"))
    deleted = all_deletions(database)
    known = {
        profile.user_id: {"user_id": profile.user_id, **(profile.fields or {})}
        for profile in Profiles.from_table(table, fields) if profile.user_id not in deleted
    }
    sent = {        # of nobody who was deleted since
        user_id: {"user_id": user_id, **{name: values.get(name, ()) for name in fields}}
        for user_id, values in sent_profiles(database)
    }
    rows = known | sent
    if is_day:
        rows = _of_day(rows, known, of_events)
    _write_rows(storage.join(uri, "users.parquet"), rows, users_schema(tuple(fields)))
    return len(rows)


def _of_day(rows: Mapping[str, Row], known: Mapping[str, Row], named: set[str]) -> dict[str, Row]:
    """Return the rows that events name, and those that the release has not, or otherwise."""
    return {
        name: row for name, row in rows.items() if name in named or row != known.get(name)
    }


def _write_rows(uri: str, rows: Mapping[str, Row], schema: pa.Schema) -> None:
    """Write rows in order of their ids."""
    table = pa.Table.from_pylist([rows[name] for name in sorted(rows)], schema=schema)
    storage.write_table(uri, table)
