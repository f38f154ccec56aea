"""Raw logs -> interactions, items, users, quarantine (Ray Data).

    files -> chunks -> checked rows -> by the user's partition -> one sorted file for each partition

Users who were deleted in `config.run.state` are left out, of quarantine, too.
"""

import logging
import os
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.config import DEFAULT_STATE, EngineConfig, default_state
from engine.data.deletions import Deletions
from engine.data.entities import (
    items_without_file,
    read_items,
    read_users,
    users_of_interactions,
)
from engine.data.interactions import (
    Checker,
    check_quality,
    count_reasons,
    first_rows,
    split_partition,
)
from engine.data.layouts import Layout, find_layout
from engine.data.schema import INTERACTIONS, QUARANTINE, part_name, users_schema
from engine.data.tables import Table
from engine.errors import ConfigError
from engine.state.database import connect, database_exists
from engine.state.deletions import all_deletions

log = logging.getLogger(__name__)

BLOCK_BYTES = 32 * 2**20
"""Rows that a reading task passes on, and that a shuffling task sorts by partition, at a time; each
holds a few times as much. Ray's own 128 MiB and 1 GiB would be the largest things in memory."""


def import_data(run: str, config: EngineConfig) -> Artifact:
    """Return the artifact "interactions" of `config.source`; needs a running Ray.

    Raises DataQualityError, after quarantine is written, if too many rows are bad.
    """
    layout = find_layout(config.source)
    deletions = service_deletions(config.run.state)
    settings = {
        **config.source.settings(), "num_partitions": config.histories.num_partitions,
        "files": sorted([file.name, file.digest()] for file in layout.files()),
        **deletions.settings(),
    }
    for name in ("path", "chunk_rows"):     # neither changes the output
        del settings[name]
    write = partial(_write, config=config, layout=layout, deletions=deletions)
    return artifacts.make(run, "interactions", settings, [], write)


def service_deletions(state: str | None) -> Deletions:
    """Return whom the service deleted; nobody where none has run yet on the default database."""
    if state is None:
        return Deletions.of({})
    if not database_exists(state):
        if state not in (DEFAULT_STATE, default_state()):
            where = f"(working folder {os.getcwd()!r})"
            raise ConfigError(f"run.state {state!r} does not exist {where}")
        log.info("no service has run here (%s): nobody was deleted", state)
        return Deletions.of({})
    database = connect(state)
    try:
        return Deletions.of(all_deletions(database))
    finally:
        database.dispose()


def _write(
    uri: str, *, config: EngineConfig, layout: Layout, deletions: Deletions
) -> dict[str, Any]:
    source = config.source
    items, bad_items = _read_items(layout, config)
    users, bad_users = _read_users(layout, config, deletions)
    storage.write_table(storage.join(uri, "quarantine/items.parquet"), bad_items)
    storage.write_table(storage.join(uri, "quarantine/users.parquet"), bad_users)
    checker = Checker(
        source, layout.roles, config.histories.num_partitions,
        None if items is None else items["item_id"].combine_chunks(),
        tuple(field.column for field in layout.user_fields.values()),
    )
    parts = _write_partitions(uri, checker, layout, deletions)
    if items is None:
        items = items_without_file(
            set[str]().union(*(part["items"] for part in parts)), source.item_fields
        )
    if layout.user_fields:
        firsts = pa.concat_tables(part["first_rows"] for part in parts).sort_by("user_id")
        users = users_of_interactions(firsts, layout.user_fields, source.user_fields)
    storage.write_table(storage.join(uri, "items.parquet"), items.combine_chunks())
    storage.write_table(storage.join(uri, "users.parquet"), users.combine_chunks())
    tables = {"items": (items, bad_items), "users": (users, bad_users)}
    return _facts(uri, parts, tables, source.max_bad_share)


def _read_items(layout: Layout, config: EngineConfig) -> tuple[pa.Table | None, pa.Table]:
    if layout.items is None:
        return None, QUARANTINE.empty_table()
    return read_items(layout.items, config.source.item_fields, config.source.chunk_rows)


def _read_users(
    layout: Layout, config: EngineConfig, deletions: Deletions
) -> tuple[pa.Table, pa.Table]:
    fields = config.source.user_fields
    if layout.users is None:
        return users_schema(fields).empty_table(), QUARANTINE.empty_table()
    return read_users(layout.users, fields, config.source.chunk_rows, deletions)


def _write_partitions(
    uri: str, checker: Checker, layout: Layout, deletions: Deletions
) -> list[dict[str, Any]]:
    """Write interactions and quarantine of every partition; return what was found in each."""
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = context.shuffle_input_batch_bytes = BLOCK_BYTES
    tables = list(layout.interactions)
    files = ray.data.from_items(
        [{"file": number} for number in range(len(tables))], override_num_blocks=len(tables)
    )
    rows = files.map_batches(
        partial(_read_chunks, checker, tables), batch_size=1, batch_format="pyarrow"
    )
    groups = rows.groupby("partition", num_partitions=checker.num_partitions)
    written = groups.map_groups(
        partial(_write_partition, uri, deletions), batch_format="pyarrow"
    )
    found = {row["partition"]: pickle.loads(row["found"]) for row in written.take_all()}
    for number in range(checker.num_partitions):
        if number not in found:
            found[number] = _write_rows(uri, number, checker.empty(), deletions)
    return [found[number] for number in sorted(found)]


def _read_chunks(checker: Checker, tables: Sequence[Table], batch: pa.Table) -> Iterator[pa.Table]:
    yield checker.empty()           # an empty source has columns, too
    for number in batch["file"].to_pylist():
        yield from checker.chunks(tables[number])


def _write_partition(uri: str, deletions: Deletions, rows: pa.Table) -> pa.Table:
    number = rows["partition"][0].as_py()
    found = _write_rows(uri, number, rows, deletions)
    return pa.table({"partition": [number], "found": [pickle.dumps(found)]})


def _write_rows(
    uri: str, number: int, rows: pa.Table, deletions: Deletions
) -> dict[str, Any]:
    remaining = deletions.remaining(rows)
    kept, refused = split_partition(remaining)
    events = kept.select(INTERACTIONS.names).cast(INTERACTIONS)
    storage.write_table(storage.join(uri, part_name("interactions", number)), events)
    storage.write_table(storage.join(uri, part_name("quarantine", number)), refused)
    firsts = first_rows(kept)
    return {
        "events": len(kept), "positives": pc.sum(kept["label"]).as_py() or 0,
        "users": len(firsts), "first_rows": _profile_columns(firsts),
        "items": set(pc.unique(kept["item_id"]).to_pylist()), "reasons": count_reasons(refused),
        "deleted": len(rows) - len(remaining),
    }


def _profile_columns(rows: pa.Table) -> pa.Table:
    others = [name for name in INTERACTIONS.names if name != "user_id"]
    return rows.drop_columns(others)


def _facts(
    uri: str, parts: Sequence[Mapping[str, Any]], tables: Mapping[str, tuple[pa.Table, pa.Table]],
    max_bad_share: float,
) -> dict[str, Any]:
    """Return the counts; raise if too much was refused."""
    reasons = Counter[str]()
    for part in parts:
        reasons.update(part["reasons"])
    refused = {"events": dict(sorted(reasons.items()))}
    kept = {"events": sum(part["events"] for part in parts)}
    for what, (table, quarantine) in tables.items():
        kept[what], refused[what] = len(table), count_reasons(quarantine)
    folder = storage.join(uri, "quarantine")
    for what, count in kept.items():
        check_quality(what, count, refused[what], max_bad_share, folder)
    return {
        **kept, "active_users": sum(part["users"] for part in parts),
        "active_items": len(set().union(*(part["items"] for part in parts))),
        "positives": sum(part["positives"] for part in parts), "quarantined": refused,
        "deleted_events": sum(part["deleted"] for part in parts),
    }
