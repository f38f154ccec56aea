"""The append-only event log: events -> one status each; the same event id is stored once."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import Connection, Engine, select

from engine.state.database import EVENTS, batches, lock_to_store, rows_of, upsert, writing
from engine.state.deletions import deletion_times

MAX_AHEAD_S = 600
"""How far a client's clock may be ahead of the service's."""


class EventState(StrEnum):
    """What became of an event."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Event:
    """One interaction as a client reports it."""

    event_id: str
    user_id: str
    item_id: str
    timestamp_s: int
    rating: float | None
    label: int
    request_id: str | None = None
    """The answer that the interaction followed."""
    is_label_derived: bool = False
    """Whether the label follows from the rating: then it is not part of what the client said."""


@dataclass(frozen=True, slots=True)
class EventStatus:
    """The answer to one event."""

    state: EventState
    reason: str | None = None


def append(engine: Engine, events: Sequence[Event]) -> list[EventStatus]:
    """Store events in one transaction, durable on return; one status each, in order.

    An event id that is known with the same content is a duplicate, with other content rejected;
    both also hold within one call, where the first event of an id counts. What a user did before
    being deleted is rejected.
    """
    with writing(engine).begin() as connection:
        lock_to_store(connection)
        received_s = int(time.time())       # not before the turn has come: see COMMIT_MARGIN_S
        deleted = deletion_times(connection, {event.user_id for event in events})
        reasons = [_refusal(event, deleted.get(event.user_id)) for event in events]
        welcome = [event for event, reason in zip(events, reasons, strict=True) if reason is None]
        first = {event.event_id: event for event in reversed(welcome)}
        stored = _insert_new(connection, engine, first, received_s)
        kept = first | _read(connection, [each for each in first if each not in stored])
    statuses = []
    for event, reason in zip(events, reasons, strict=True):
        if reason is not None:
            statuses.append(EventStatus(EventState.REJECTED, reason))
            continue
        statuses.append(_status(event, kept[event.event_id], event.event_id in stored))
        stored.discard(event.event_id)
    return statuses


def _refusal(event: Event, deleted_s: int | None) -> str | None:
    """Return why an event may not be stored at all; None if it may."""
    if deleted_s is None or event.timestamp_s > deleted_s:
        return None
    when = datetime.fromtimestamp(deleted_s, UTC).isoformat()
    return f"timestamp_s: user {event.user_id!r} was deleted; events up to {when} are not stored"


def _status(event: Event, kept: Event, is_new: bool) -> EventStatus:
    if is_new:
        return EventStatus(EventState.STORED)
    difference = _difference(event, kept)
    if difference is None:
        return EventStatus(EventState.DUPLICATE)
    return EventStatus(
        EventState.REJECTED,
        f"event_id {event.event_id!r} is already stored with another {difference}",
    )


def _difference(event: Event, kept: Event) -> str | None:
    """Return the first field in which two events of one id differ."""
    for name in ("user_id", "item_id", "timestamp_s", "rating", "request_id"):
        if getattr(event, name) != getattr(kept, name):
            return name
    if event.label != kept.label and not event.is_label_derived:
        return "label"
    return None


def _insert_new(
    connection: Connection, engine: Engine, events: dict[str, Event], received_s: int
) -> set[str]:
    """Insert the ids that are not there; return them.

    In order of id, so that two writers on PostgreSQL never wait for each other in a circle.
    """
    rows = [_row(events[event_id], received_s) for event_id in sorted(events)]
    stored: set[str] = set()
    for some in batches(rows):
        statement = upsert(engine, EVENTS, "event_id").values(some)
        stored |= set(connection.scalars(statement.returning(EVENTS.c.event_id)))
    return stored


def _row(event: Event, received_s: int) -> dict[str, object]:
    row = asdict(event) | {"received_s": received_s}
    del row["is_label_derived"]
    return row


def _read(connection: Connection, event_ids: Sequence[str]) -> dict[str, Event]:
    columns = [column for column in EVENTS.c if column.name != "received_s"]
    rows = rows_of(connection, select(*columns), EVENTS.c.event_id, event_ids)
    return {row.event_id: Event(**row._mapping) for row in rows}
