"""Items that were sent to the service: how the catalogue differs from that of a release.

Every change has a revision, larger than all before it and visible after them, so who has seen a
revision asks for what came later. A row is never removed: an item that was withdrawn says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from sqlalchemy import Connection, Engine, Row, bindparam, func, or_, select, update

from engine.state.database import ITEMS, lock_catalogue, rows_of, upsert, writing
from engine.types import FloatArray

NOT_EMBEDDED = ""
"""The encoder of an item without a vector."""
CHANGED = ("title", "fields", "is_withdrawn", "revision", "encoder", "vector")


class ItemState(StrEnum):
    """What became of a sent item."""

    STORED = "stored"
    UNCHANGED = "unchanged"
    """The very same was there."""
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class SentItem:
    """One item as it was sent."""

    item_id: str
    title: str | None = None
    """None for a withdrawn item alone: as it was."""
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    is_withdrawn: bool = False


@dataclass(frozen=True, slots=True)
class StoredItem:
    """One item as it is kept."""

    item: SentItem
    first_revision: int
    """That of its first change: with the id the order in which items came."""
    revision: int
    """That of its last change."""
    encoder: str = NOT_EMBEDDED
    vector_H: FloatArray | None = None
    """Raw text vector by this encoder, float32."""


def put_items(engine: Engine, items: Sequence[SentItem]) -> list[ItemState]:
    """Store items, each id once, in one transaction; durable on return.

    An item that is withdrawn without a title keeps title, fields and vector.
    """
    with writing(engine).begin() as connection:
        lock_catalogue(connection)
        ids = [item.item_id for item in items]
        known = {row.item_id: _stored(row)
                 for row in rows_of(connection, select(ITEMS), ITEMS.c.item_id, ids)}
        revision = newest_revision(connection) + 1
        states, rows = [], []
        for item in items:
            before = known.get(item.item_id)
            changed = _changed(before, item, revision)
            states.append(ItemState.UNCHANGED if changed is None else ItemState.STORED)
            rows += [] if changed is None else [_row(changed)]
        if rows:
            connection.execute(upsert(engine, ITEMS, "item_id", replaced=CHANGED), rows)
    return states


def newest_revision(connection: Connection) -> int:
    """Return the revision of the last change; 0 before the first."""
    return connection.scalar(select(func.max(ITEMS.c.revision))) or 0


def items_since(engine: Engine, revision: int) -> list[StoredItem]:
    """Return the items that changed after a revision, in the order in which they first came."""
    statement = select(ITEMS).where(ITEMS.c.revision > revision)
    with engine.connect() as connection:
        if newest_revision(connection) <= revision:
            return []
        rows = connection.execute(statement.order_by(ITEMS.c.first_revision, ITEMS.c.item_id))
        return [_stored(row) for row in rows]


def items_to_embed(engine: Engine, encoder: str, limit: int) -> list[StoredItem]:
    """Return some items on offer that have no vector by this encoder."""
    is_other = or_(ITEMS.c.encoder < encoder, ITEMS.c.encoder > encoder)    # an index helps
    statement = select(ITEMS).where(is_other, ITEMS.c.is_withdrawn.is_(False))
    with engine.connect() as connection:
        rows = connection.execute(statement.order_by(ITEMS.c.revision).limit(limit))
        return [_stored(row) for row in rows]


def store_vectors(
    engine: Engine, encoder: str, items: Sequence[StoredItem], vectors_BH: FloatArray
) -> int:
    """Give items their vectors; return how many, without those that changed meanwhile."""
    if not items:
        return 0
    is_same = (ITEMS.c.item_id == bindparam("of_item"), ITEMS.c.revision == bindparam("seen"))
    statement = update(ITEMS).where(*is_same).values(
        encoder=encoder, vector=bindparam("bytes"), revision=bindparam("now")
    )
    with writing(engine).begin() as connection:
        lock_catalogue(connection)
        now = newest_revision(connection) + 1
        return sum(
            connection.execute(statement, {
                "of_item": each.item.item_id, "seen": each.revision, "now": now,
                "bytes": vector_H.astype("<f4").tobytes(),
            }).rowcount
            for each, vector_H in zip(items, vectors_BH, strict=True)
        )


def _changed(before: StoredItem | None, item: SentItem, revision: int) -> StoredItem | None:
    """Return what to keep of an item; None if it is there already."""
    if before is None:
        return StoredItem(item, revision, revision)
    old = before.item
    if item.title is None:
        item = SentItem(item.item_id, old.title, old.fields, item.is_withdrawn)
    if item == old:
        return None
    is_same_text = (item.title, item.fields) == (old.title, old.fields)
    return StoredItem(
        item, before.first_revision, revision,
        before.encoder if is_same_text else NOT_EMBEDDED,
        before.vector_H if is_same_text else None,
    )


def _row(stored: StoredItem) -> dict[str, Any]:
    item, vector_H = stored.item, stored.vector_H
    return {
        "item_id": item.item_id, "title": item.title, "is_withdrawn": item.is_withdrawn,
        "fields": {name: list(values) for name, values in item.fields.items()},
        "first_revision": stored.first_revision, "revision": stored.revision,
        "encoder": stored.encoder,
        "vector": None if vector_H is None else vector_H.astype("<f4").tobytes(),
    }


def _stored(row: Row[Any]) -> StoredItem:
    fields = {name: tuple(values) for name, values in row.fields.items()}
    vector_H = None if row.vector is None else np.frombuffer(row.vector, "<f4")
    return StoredItem(
        SentItem(row.item_id, row.title, fields, row.is_withdrawn),
        row.first_revision, row.revision, row.encoder, vector_H,
    )
