"""Items that were sent to the service: how the catalogue differs from that of a release.

Every change has a revision, larger than all before it and visible after them, so who has seen a
revision asks for what came later. A row is never removed: an item that was withdrawn says so. A
text has one vector for each encoder that read it: releases of several may live side by side.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from sqlalchemy import Connection, Engine, Row, Select, and_, bindparam, func, select, update

from engine.state.database import (
    ITEM_VECTORS,
    ITEMS,
    lock_catalogue,
    rows_of,
    upsert,
    writing,
)
from engine.types import FloatArray

CHANGED = ("title", "fields", "is_withdrawn", "text_revision", "revision")


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
    """Those that have a value."""
    is_withdrawn: bool = False

    def values_of(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Return the values of fields by name, none where a field has none."""
        return {name: self.fields.get(name, ()) for name in names}


@dataclass(frozen=True, slots=True)
class StoredItem:
    """One item as it is kept."""

    item: SentItem
    first_revision: int
    """That of its first change: with the id the order in which items came."""
    text_revision: int
    """That of the last change of its text."""
    revision: int
    """That of its last change, or of its last vector."""
    vector_H: FloatArray | None = None
    """Raw vector of its text by the encoder asked for, float32."""


def put_items(engine: Engine, items: Sequence[SentItem]) -> list[ItemState]:
    """Store items, each id once, in one transaction; durable on return.

    An item that is withdrawn without a title keeps title and fields.
    """
    with writing(engine).begin() as connection:
        lock_catalogue(connection)
        ids = [item.item_id for item in items]
        known = {row.item_id: _stored(row)
                 for row in rows_of(connection, select(ITEMS), ITEMS.c.item_id, ids)}
        revision = newest_revision(connection) + 1
        states, rows = [], []
        for item in items:
            changed = _changed(known.get(item.item_id), item, revision)
            states.append(ItemState.UNCHANGED if changed is None else ItemState.STORED)
            rows += [] if changed is None else [_row(changed)]
        if rows:
            connection.execute(upsert(engine, ITEMS, "item_id", replaced=CHANGED), rows)
    return states


def newest_revision(connection: Connection) -> int:
    """Return the revision of the last change; 0 before the first."""
    return connection.scalar(select(func.max(ITEMS.c.revision))) or 0


def items_since(engine: Engine, revision: int, encoder: str) -> list[StoredItem]:
    """Return the items that changed after a revision, in the order in which they first came, with
    the vectors of one encoder.
    """
    statement = _with_vectors(encoder).where(ITEMS.c.revision > revision)
    with engine.connect() as connection:
        rows = connection.execute(statement.order_by(ITEMS.c.first_revision, ITEMS.c.item_id))
        return [_stored(row) for row in rows]


def items_to_embed(engine: Engine, encoder: str, since: int, limit: int) -> list[StoredItem]:
    """Return the items on offer that changed after a revision and have no vector by an encoder, the
    newest changes first.
    """
    statement = _with_vectors(encoder).where(
        ITEMS.c.revision > since, ITEMS.c.is_withdrawn.is_(False), ITEM_VECTORS.c.vector.is_(None)
    )
    with engine.connect() as connection:
        newest = statement.order_by(ITEMS.c.revision.desc(), ITEMS.c.item_id).limit(limit)
        return [_stored(row) for row in connection.execute(newest)]


def store_vectors(
    engine: Engine, encoder: str, items: Sequence[StoredItem], vectors_BH: FloatArray
) -> None:
    """Give texts their vectors, under one revision; a newer text's vector stays."""
    if not items:
        return
    rows = [
        {"item_id": each.item.item_id, "encoder": encoder, "text_revision": each.text_revision,
         "vector": vector_H.astype("<f4").tobytes()}
        for each, vector_H in zip(items, vectors_BH, strict=True)
    ]
    insert = upsert(
        engine, ITEM_VECTORS, "item_id", "encoder", replaced=("text_revision", "vector"),
        newer="text_revision",
    )
    news = update(ITEMS).where(
        ITEMS.c.item_id == bindparam("of_item"), ITEMS.c.text_revision == bindparam("of_text")
    )
    with writing(engine).begin() as connection:
        lock_catalogue(connection)
        now = newest_revision(connection) + 1
        connection.execute(insert, rows)
        connection.execute(news.values(revision=bindparam("now")), [
            {"of_item": each.item.item_id, "of_text": each.text_revision, "now": now}
            for each in items
        ])


def _with_vectors(encoder: str) -> Select[Any]:
    is_of_text = and_(
        ITEM_VECTORS.c.item_id == ITEMS.c.item_id, ITEM_VECTORS.c.encoder == encoder,
        ITEM_VECTORS.c.text_revision == ITEMS.c.text_revision,
    )
    return select(*ITEMS.c, ITEM_VECTORS.c.vector).select_from(
        ITEMS.outerjoin(ITEM_VECTORS, is_of_text)
    )


def _changed(before: StoredItem | None, item: SentItem, revision: int) -> StoredItem | None:
    """Return what to keep of an item; None if it is there already."""
    if before is None:
        return StoredItem(item, revision, revision, revision)
    old = before.item
    if item.title is None:
        item = SentItem(item.item_id, old.title, old.fields, item.is_withdrawn)
    if item == old:
        return None
    is_same_text = (item.title, item.fields) == (old.title, old.fields)
    text_revision = before.text_revision if is_same_text else revision
    return StoredItem(item, before.first_revision, text_revision, revision)


def _row(stored: StoredItem) -> dict[str, Any]:
    item = stored.item
    return {
        "item_id": item.item_id, "title": item.title, "is_withdrawn": item.is_withdrawn,
        "fields": {name: list(values) for name, values in item.fields.items()},
        "first_revision": stored.first_revision, "text_revision": stored.text_revision,
        "revision": stored.revision,
    }


def _stored(row: Row[Any]) -> StoredItem:
    fields = {name: tuple(values) for name, values in row.fields.items()}
    vector = getattr(row, "vector", None)
    return StoredItem(
        SentItem(row.item_id, row.title, fields, row.is_withdrawn),
        row.first_revision, row.text_revision, row.revision,
        None if vector is None else np.frombuffer(vector, "<f4"),
    )
