"""The items and users of a source -> tables of the declared schemas, and the rows refused.

A later source extends what is known: items keep their index, whoever is named again is replaced.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from engine.data.deletions import Deletions
from engine.data.interactions import user_column
from engine.data.layouts import Entities, FieldSource
from engine.data.schema import QUARANTINE, items_schema, users_schema

NO_ID = "missing id"
DUPLICATE_ID = "duplicate id"


def read_items(
    entities: Entities, fields: tuple[str, ...], chunk_rows: int
) -> tuple[pa.Table, pa.Table]:
    """Return the catalogue, indexed by item id from 1, and the quarantined rows.

    An item without a title is called by its id.
    """
    rows, refused = _read(entities, chunk_rows)
    values = [
        {"item": index, "title": "".join(row.pop("title")) or item_id, "item_id": item_id, **row}
        for index, (item_id, row) in enumerate(sorted(rows.items()), start=1)
    ]
    return pa.Table.from_pylist(values, schema=items_schema(fields)), refused


def read_users(
    entities: Entities, fields: tuple[str, ...], chunk_rows: int, deletions: Deletions
) -> tuple[pa.Table, pa.Table]:
    """Return the profiles in order of user id, and the quarantined rows; deleted users in neither.

    A profile does not tell when it was written, so it goes even if the user came back.
    """
    rows, refused = _read(entities, chunk_rows, deletions)
    values = [{"user_id": user_id, **row} for user_id, row in sorted(rows.items())]
    return pa.Table.from_pylist(values, schema=users_schema(fields)), refused


def users_of_interactions(
    first_rows: pa.Table, sources: Mapping[str, FieldSource], fields: tuple[str, ...]
) -> pa.Table:
    """Return the profiles that the users' first rows tell; a field without a source is empty."""
    columns = {}
    for name, source in sources.items():
        cells = pc.fill_null(first_rows[user_column(source.column)], "").to_pylist()
        columns[name] = [source.convert(cell) for cell in cells]
    empty = [()] * len(first_rows)
    values = {name: columns.get(name, empty) for name in fields}
    return pa.table({"user_id": first_rows["user_id"], **values}, schema=users_schema(fields))


def items_without_file(item_ids: Iterable[str], fields: tuple[str, ...]) -> pa.Table:
    """Return the catalogue of a source that has only interactions: a title is the id."""
    empty: dict[str, list[str]] = {name: [] for name in fields}
    values = [
        {"item": index, "item_id": item_id, "title": item_id, **empty}
        for index, item_id in enumerate(sorted(item_ids), start=1)
    ]
    return pa.Table.from_pylist(values, schema=items_schema(fields))


def extend_items(known: pa.Table, named: pa.Table) -> pa.Table:
    """Return a catalogue with the items of a later source: new ones behind, in order of id.

    A row that says nothing (no field, the id for a title) replaces none.
    """
    is_telling = pc.or_(_has_values(named), pc.not_equal(named["title"], named["item_id"]))
    items = _extend(known, named, "item_id", is_telling)
    numbers = pa.array(range(1, len(items) + 1), pa.int32())
    return items.set_column(0, items.schema.field("item"), numbers)


def extend_users(known: pa.Table, named: pa.Table) -> pa.Table:
    """Return profiles with those of a later source, in order of user id.

    A row without a value replaces none.
    """
    return _extend(known, named, "user_id", _has_values(named)).sort_by("user_id")


def _extend(
    known: pa.Table, named: pa.Table, id_column: str, is_telling: pa.ChunkedArray
) -> pa.Table:
    """Return the known rows, replaced by the named ones that tell something, and the new ones."""
    named = named.append_column("is_telling", is_telling).sort_by(id_column)
    places = pc.index_in(named[id_column], known[id_column].combine_chunks())
    replaced = pc.and_(pc.is_valid(places), named["is_telling"])
    rows = np.arange(len(known))
    rows[places.filter(replaced).to_numpy()] = len(known) + _true(replaced)
    rows = np.append(rows, len(known) + _true(pc.is_null(places)))
    both = pa.concat_tables([known, named.drop_columns(["is_telling"])])
    return both.take(pa.array(rows, pa.int64())).combine_chunks()


def _has_values(named: pa.Table) -> pa.ChunkedArray:
    """Return which rows have a field with a value."""
    found = pa.chunked_array([pa.array(np.zeros(len(named), bool))])
    for field in named.schema:
        if pa.types.is_list(field.type):
            lengths = pc.list_value_length(named[field.name])
            found = pc.or_(found, pc.fill_null(pc.greater(lengths, 0), False))
    return found


def _true(values: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Return the places of what is true."""
    return np.flatnonzero(values.to_numpy())


def _read(
    entities: Entities, chunk_rows: int, deletions: Deletions | None = None
) -> tuple[dict[str, dict[str, tuple[str, ...]]], pa.Table]:
    """Return the fields by id, the first row of an id winning, and the quarantined rows.

    Of users, those who were deleted are in neither.
    """
    sources: dict[str, FieldSource] = dict(entities.fields)
    if "title" not in sources:
        sources["title"] = entities.title or FieldSource(entities.id_column, lambda cell: ())
    names = list(dict.fromkeys([entities.id_column, *(s.column for s in sources.values())]))
    known: dict[str, dict[str, tuple[str, ...]]] = {}
    refused = []
    for chunk in entities.table.chunks(names, chunk_rows):
        if deletions is not None:
            chunk = deletions.other_users(chunk, entities.id_column)
        texts = {name: pc.fill_null(chunk[name], "").to_pylist() for name in names}
        ids = [text.strip() for text in texts[entities.id_column]]
        for row, (key, fault) in enumerate(zip(ids, chunk["fault"].to_pylist(), strict=True)):
            fault = fault or (NO_ID if not key else DUPLICATE_ID if key in known else None)
            if fault:
                refused.append(_refuse(entities, chunk, row, fault))
            else:
                known[key] = {n: s.convert(texts[s.column][row]) for n, s in sources.items()}
    return known, pa.Table.from_pylist(refused, schema=QUARANTINE)


def _refuse(entities: Entities, chunk: pa.Table, row: int, reason: str) -> Mapping[str, Any]:
    return {
        "source": entities.table.file.name, "line": chunk["line"][row].as_py(),
        "text": chunk["text"][row].as_py(), "reason": reason,
    }
