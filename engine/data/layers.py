"""Versions of the histories, each a folder; one made at night lies upon older ones.

    histories-<key>/histories/part-00000.parquet   a base: all users; else those who changed, whole
    histories-<key>/layers.json                    folders that it lies upon, newest first, the base
                                                   last; they stand beside it. A base has none
    histories-<key>/deleted.parquet                users whose events up to then are not read from
                                                   any of them; none of whom a base holds nothing

Of a user, the row of the newest version counts.
"""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from engine import storage
from engine.data.deletions import Deletions
from engine.data.interactions import find_repeats
from engine.data.schema import HISTORIES, part_name

LAYERS_FILE, DELETED_FILE = "layers.json", "deleted.parquet"

GROUP_ROWS = 512
"""Users of a part that are read together: who looks for one reads no more than so many."""


def read_histories(
    histories: str, partition: int, users: pa.Array | None = None,
    columns: list[str] | None = None,
) -> pa.Table:
    """Return a partition's histories (schema.HISTORIES, or some columns), in order of user id.

    `histories` is the URI of a version; `users`, if given, are those wanted.
    """
    below = lower_versions(histories)
    if not below:
        return _read_part(histories, partition, users, columns)
    deleted = read_deletions(histories)
    needed = {"user_id", *(columns or HISTORIES.names)}
    if len(deleted.user_ids):
        needed.add("timestamps_s")
    names = [name for name in HISTORIES.names if name in needed]
    parts = [_read_part(uri, partition, users, names) for uri in (histories, *below)]
    return deleted.later_histories(overlay(parts)).select(columns or HISTORIES.names)


def _read_part(
    histories: str, partition: int, users: pa.Array | None, columns: list[str] | None
) -> pa.Table:
    uri = storage.join(histories, part_name("histories", partition))
    if users is None:
        return storage.read_table(uri, columns)
    return storage.read_rows(uri, "user_id", users, columns)


def write_histories(histories: str, partition: int, table: pa.Table) -> None:
    """Write the part of a partition."""
    uri = storage.join(histories, part_name("histories", partition))
    storage.write_table(uri, table, group_rows=GROUP_ROWS)


def overlay(parts: Iterable[pa.Table]) -> pa.Table:
    """Return each user's row of the first part that has one, in order of user id."""
    table = pa.concat_tables(parts).combine_chunks()
    order = pc.sort_indices(table["user_id"])           # stable: the first part's row comes first
    is_first = ~find_repeats(table.select(["user_id"]).take(order), ["user_id"])
    return table.take(order.filter(pa.array(is_first)))


def layer_names(histories: str) -> list[str]:
    """Return the names of the folders that a version lies upon, newest first."""
    uri = storage.join(histories, LAYERS_FILE)
    names: list[str] = storage.read_json(uri) if storage.exists(uri) else []
    return names


def lower_versions(histories: str) -> list[str]:
    """Return the folders that a version lies upon, newest first: they are kept as long as it is."""
    run, _ = split_folder(histories)
    return [storage.join(run, name) for name in layer_names(histories)]


def split_folder(uri: str) -> tuple[str, str]:
    """Return the folder that holds a folder, and its name in it."""
    run, _, name = uri.rstrip("/").rpartition("/")
    return run, name


def read_deletions(histories: str) -> Deletions:
    """Return the deleted users whose older events no reader of this version sees."""
    uri = storage.join(histories, DELETED_FILE)
    if not storage.exists(uri):
        return Deletions.of({})
    return Deletions.from_table(storage.read_table(uri))
