"""Deleted users: nothing of them up to their deletion is kept, stored again or learned from."""

import time
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, delete, inspect, select

from engine.state.database import (
    DELETIONS,
    EVENTS,
    IMPRESSIONS,
    PROFILES,
    lock_to_delete,
    rows_of,
    upsert,
    writing,
)


@dataclass(frozen=True, slots=True)
class Deletion:
    """What became of a deleted user."""

    user_id: str
    deleted_s: int
    """Events up to this time are refused from now on, wherever they come from."""
    events: int
    """Events that were removed."""


def delete_user(engine: Engine, user_id: str) -> Deletion:
    """Remove events, answers and profile of a user and remember when, in one transaction.

    A user of whom nothing is stored is remembered, too: training may know them from elsewhere. To
    repeat it also removes what came since.
    """
    with writing(engine).begin() as connection:
        lock_to_delete(connection)
        before_s = deletion_times(connection, [user_id]).get(user_id, 0)
        deleted_s = max(before_s, int(time.time()))         # clocks differ between machines
        removed = connection.execute(delete(EVENTS).where(EVENTS.c.user_id == user_id)).rowcount
        for table in (IMPRESSIONS, PROFILES):
            connection.execute(delete(table).where(table.c.user_id == user_id))
        mark = {"user_id": user_id, "deleted_s": deleted_s}
        connection.execute(upsert(engine, DELETIONS, "user_id", replaced=["deleted_s"]), mark)
    return Deletion(user_id, deleted_s, removed)


def is_deleted(engine: Engine, user_id: str) -> bool:
    """Tell whether a user was ever deleted: what a release knows of them is not used."""
    with engine.connect() as connection:
        return user_id in deletion_times(connection, [user_id])


def deletion_times(connection: Connection, user_ids: Collection[str]) -> dict[str, int]:
    """Return when users were deleted, in seconds since 1970; those who were not are left out."""
    rows = rows_of(connection, select(DELETIONS), DELETIONS.c.user_id, user_ids)
    return {row.user_id: row.deleted_s for row in rows}


def all_deletions(engine: Engine) -> dict[str, int]:
    """Return the time of every deletion by user id, in order of the ids; none before there was such
    a table.
    """
    if not inspect(engine).has_table(DELETIONS.name):
        return {}
    statement = select(DELETIONS.c.user_id, DELETIONS.c.deleted_s).order_by(DELETIONS.c.user_id)
    with engine.connect() as connection:
        return {row.user_id: row.deleted_s for row in connection.execute(statement)}
