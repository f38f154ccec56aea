"""A user's newest interactions, read while a request waits; and their bulk seed."""

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    and_,
    func,
    literal,
    select,
)

from engine.state.database import EVENTS, lock_to_store, rows_of, upsert, writing
from engine.state.deletions import deletion_times

SEED_CHUNK = 10_000
ID_CHUNK = 10_000
"""User ids, or events, that are fetched at a time."""
COMMIT_MARGIN_S = 60
"""An event has the time of its receipt before it is committed, and the clocks of services differ: a
night leaves the newest events to the next one. One that is committed later than this after its
receipt is missed by the nights, and known to a whole training."""
SEED_PREFIX = "seed:"
"""Begins the event ids of seeded interactions; no client may use it."""
IS_REPORTED = func.substr(EVENTS.c.event_id, 1, len(SEED_PREFIX)) != SEED_PREFIX
"""Whether an event is a client's own; LIKE would ignore case in SQLite."""


@dataclass(frozen=True, slots=True)
class PastEvent:
    """One interaction of a history, by item id."""

    item_id: str
    timestamp_s: int
    rating: float | None
    label: int


_PAST_EVENT = (EVENTS.c.item_id, EVENTS.c.timestamp_s, EVENTS.c.rating, EVENTS.c.label)


def newest_events(engine: Engine, user_id: str, limit: int) -> list[PastEvent]:
    """Return the newest `limit` events of a user, oldest first; equal times are ordered by item."""
    order = (EVENTS.c.timestamp_s, EVENTS.c.item_id, EVENTS.c.event_id)
    statement = (
        select(*_PAST_EVENT)
        .where(EVENTS.c.user_id == user_id)
        .order_by(*(column.desc() for column in order))
        .limit(limit)
    )
    with engine.connect() as connection:
        rows = connection.execute(statement).all()
    return [PastEvent(*row) for row in reversed(rows)]


def seen_items(engine: Engine, user_id: str) -> list[str]:
    """Return every item of a user's stored events, each once."""
    statement = select(EVENTS.c.item_id).where(EVENTS.c.user_id == user_id).distinct()
    with engine.connect() as connection:
        return list(connection.scalars(statement))


def user_ids(engine: Engine) -> Iterator[str]:
    """Yield every user who has an event, by code point; holds a read transaction meanwhile."""
    statement = select(EVENTS.c.user_id).distinct().order_by(EVENTS.c.user_id)
    with engine.connect() as connection:
        yield from connection.execution_options(yield_per=ID_CHUNK).scalars(statement)


def all_events(engine: Engine) -> Iterator[tuple[str, PastEvent]]:
    """Yield every event with its user, by user and time, as of one moment; holds a read transaction
    meanwhile.
    """
    yield from _events(engine, select(EVENTS.c.user_id, *_PAST_EVENT))


def received_events(
    engine: Engine, since_s: int, until_s: int
) -> Iterator[tuple[str, PastEvent]]:
    """Yield the events that were received at since < time <= until, as `all_events` does; seeded
    ones were received at 0. Costs in proportion to their number.
    """
    statement = select(EVENTS.c.user_id, *_PAST_EVENT)
    yield from _events(engine, statement.where(_is_received(since_s, until_s)))


def count_received(engine: Engine, since_s: int, until_s: int) -> int:
    """Return the number of events that `received_events` yields."""
    statement = select(func.count()).select_from(EVENTS).where(_is_received(since_s, until_s))
    with engine.connect() as connection:
        return int(connection.scalar(statement) or 0)


def newest_bound(now_s: float | None = None) -> int:
    """Return the time up to which all events that were received can be read now: the upper bound of
    a night's events.
    """
    return int(time.time() if now_s is None else now_s) - COMMIT_MARGIN_S


def _is_received(since_s: int, until_s: int) -> ColumnElement[bool]:
    return and_(EVENTS.c.received_s > since_s, EVENTS.c.received_s <= until_s)


def _events(engine: Engine, statement: Select[Any]) -> Iterator[tuple[str, PastEvent]]:
    order = (EVENTS.c.user_id, EVENTS.c.timestamp_s, EVENTS.c.item_id, EVENTS.c.event_id)
    with engine.connect() as connection:
        streamed = connection.execution_options(yield_per=ID_CHUNK)
        for user_id, *event in streamed.execute(statement.order_by(*order)):
            yield user_id, PastEvent(*event)


def some_user_ids(engine: Engine, prefix: str, limit: int) -> list[str]:
    """Return at most `limit` users who have an event and whose ids begin with a prefix, by code
    point. Costs a look into the index for each, however many events they have.
    """
    first = select(func.min(EVENTS.c.user_id)).where(EVENTS.c.user_id >= prefix)
    ids = select(
        first.scalar_subquery().label("user_id"), literal(1).label("place")
    ).cte("ids", recursive=True)
    following = select(func.min(EVENTS.c.user_id)).where(EVENTS.c.user_id > ids.c.user_id)
    ids = ids.union_all(
        select(following.scalar_subquery(), ids.c.place + 1)
        .where(ids.c.user_id.is_not(None), ids.c.place < limit)
    )
    statement = select(ids.c.user_id).where(ids.c.user_id.is_not(None)).order_by(ids.c.place)
    with engine.connect() as connection:
        found = connection.scalars(statement).all()
    return list(takewhile(lambda user_id: user_id.startswith(prefix), found))


def has_events(engine: Engine) -> bool:
    """Tell whether any event is stored."""
    with engine.connect() as connection:
        return connection.scalar(select(EVENTS.c.user_id).limit(1)) is not None


def count_events(engine: Engine) -> int:
    """Return the number of stored events."""
    with engine.connect() as connection:
        return int(connection.scalar(select(func.count()).select_from(EVENTS)) or 0)


def seed(
    engine: Engine, histories: Iterable[tuple[str, list[PastEvent]]], received_s: int = 0
) -> int:
    """Store whole histories by user; return the events read. Safe to repeat.

    An event's id is a hash of user, item, time and its number among equal ones, so seeding a longer
    history later adds only what is new; rating and label follow the last import. Left out is what
    users did before being deleted, and what they reported themselves: a history that was made of
    stored events comes back. Works in batches: an interrupted seed is started again.
    """
    read = 0
    rows = _seed_rows(histories, received_s)
    while chunk := list(islice(rows, SEED_CHUNK)):
        with writing(engine).begin() as connection:
            lock_to_store(connection)
            if kept := _without_reported(connection, _without_deleted(connection, chunk)):
                statement = upsert(engine, EVENTS, "event_id", replaced=("rating", "label"))
                connection.execute(statement, kept)
        read += len(chunk)
    return read


def _without_deleted(connection: Connection, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    deleted = deletion_times(connection, {row["user_id"] for row in rows})
    return [row for row in rows if row["timestamp_s"] > deleted.get(row["user_id"], -1)]


def _without_reported(
    connection: Connection, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the rows of which no event is stored under an id of a client's own."""
    columns = EVENTS.c.user_id, EVENTS.c.item_id, EVENTS.c.timestamp_s
    statement = select(*columns).where(IS_REPORTED)
    users = {row["user_id"] for row in rows}
    reported = {tuple(row) for row in rows_of(connection, statement, EVENTS.c.user_id, users)}
    return [
        row for row in rows
        if (row["user_id"], row["item_id"], row["timestamp_s"]) not in reported
    ]


def _seed_rows(
    histories: Iterable[tuple[str, list[PastEvent]]], received_s: int
) -> Iterator[dict[str, Any]]:
    for user_id, events in histories:
        repeats: Counter[tuple[str, int]] = Counter()
        for event in events:
            number = repeats[event.item_id, event.timestamp_s]
            repeats[event.item_id, event.timestamp_s] += 1
            yield {
                "event_id": seed_event_id(user_id, event, number), "user_id": user_id,
                "item_id": event.item_id, "timestamp_s": event.timestamp_s,
                "rating": event.rating, "label": event.label, "received_s": received_s,
            }


def seed_event_id(user_id: str, event: PastEvent, number: int) -> str:
    """Return the id of a seeded event; `number` tells equal ones apart."""
    identity = "\x00".join((user_id, event.item_id, str(event.timestamp_s), str(number)))
    return SEED_PREFIX + hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
