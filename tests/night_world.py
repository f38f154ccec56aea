"""Histories and days of events, written as the stages write them, without files to import."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.data.histories import build_histories
from engine.data.layers import read_histories, write_histories
from engine.data.schema import (
    INTERACTIONS,
    histories_of,
    items_schema,
    part_name,
    partition_of,
    users_schema,
)
from engine.data.splits import write_timeline
from engine.types import Timeline

PARTITIONS = 2
Event = tuple[str, str, int]
"""user, item, time; rating and label follow from them."""


def night_config(keep_layers: int = 7, **sections: Any) -> EngineConfig:
    return EngineConfig.model_validate({
        "source": {"item_fields": ["genres"], "user_fields": ["job"]},
        "histories": {"num_partitions": PARTITIONS}, "night": {"keep_layers": keep_layers},
        "prompt": {"history_fields": [], "candidate_fields": []}, **sections,
    })


def day_of(
    run: str, events: Collection[Event], *, titles: Mapping[str, str] | None = None,
    genres: Mapping[str, list[str]] | None = None, jobs: Mapping[str, str] | None = None,
    partitions: int = PARTITIONS,
) -> Artifact:
    """Return the artifact "interactions" of some events; items without a title are called by id."""
    return day_from(
        run, table_of(sorted(events)), titles=titles, genres=genres, jobs=jobs,
        partitions=partitions,
    )


def day_from(
    run: str, events: pa.Table, *, titles: Mapping[str, str] | None = None,
    genres: Mapping[str, list[str]] | None = None, jobs: Mapping[str, str] | None = None,
    partitions: int = PARTITIONS,
) -> Artifact:
    """Return the artifact "interactions" of a table of INTERACTIONS."""
    titles, genres, jobs = titles or {}, genres or {}, jobs or {}
    item_ids = sorted({*pc.unique(events["item_id"]).to_pylist()} | titles.keys())
    items = [
        {"item": place, "item_id": item, "title": titles.get(item, item),
         "genres": genres.get(item, [])} for place, item in enumerate(item_ids, start=1)
    ]
    users = [{"user_id": user, "job": [job]} for user, job in sorted(jobs.items())]

    def write(uri: str) -> dict[str, Any]:
        _write_entities(uri, items, users)
        everybody = pc.unique(events["user_id"]).to_pylist()
        for number in range(partitions):
            own = [user for user in everybody if partition_of(user, partitions) == number]
            storage.write_table(
                storage.join(uri, part_name("interactions", number)),
                events.filter(pc.is_in(events["user_id"], pa.array(own, pa.string()))),
            )
        return {"events": len(events)}

    digest = storage.sha256(repr(events.to_pydict()).encode())
    settings = {"events": digest, "items": items, "users": users, "partitions": partitions}
    return artifacts.make(run, "interactions", settings, [], write)


def base_of(run: str, day: Artifact, end_s: int) -> Artifact:
    """Return the artifact "histories" of a day, as a full training writes it."""
    items = storage.read_table(day.path("items.parquet"))

    def write(uri: str) -> dict[str, Any]:
        for name in ("items.parquet", "users.parquet"):
            storage.copy_file(day.path(name), storage.join(uri, name))
        for number, part in enumerate(day.files("interactions/")):
            write_histories(uri, number, build_histories(
                storage.read_table(part), items["item_id"].combine_chunks()
            ))
        write_timeline(storage.join(uri, "timeline.json"), Timeline(0, 1, 2, 3, end_s - 1))
        return {"longest": 0, "label": night_config().source.label.settings()}

    return artifacts.make(run, "histories", {}, [day], write)


def table_of(events: Any) -> pa.Table:
    rows = [
        {"user_id": user, "item_id": item, "timestamp_s": time_s, "rating": 1 + time_s % 5,
         "label": time_s % 2} for user, item, time_s in events
    ]
    return pa.Table.from_pylist(rows, schema=INTERACTIONS)


def events_by_user(histories: Artifact) -> dict[str, list[tuple[str, int, float, int]]]:
    """Return each user's events (item id, time, rating, label) as readers see them."""
    item_ids = ["", *read_items(histories)]
    found = {}
    for partition in range(len(histories.files("histories/"))):
        for user_id, history in histories_of(read_histories(histories.uri, partition)).items():
            found[user_id] = [
                (item_ids[item], time_s, rating, label) for item, time_s, rating, label in zip(
                    history.items.tolist(), history.timestamps_s.tolist(),
                    history.ratings.tolist(), history.labels.tolist(), strict=True,
                )
            ]
    return found


def read_items(histories: Artifact) -> list[str]:
    """Return the item ids of the catalogue, the first being item 1."""
    ids: list[str] = storage.read_table(histories.path("items.parquet"))["item_id"].to_pylist()
    return ids


def written_users(histories: Artifact) -> set[str]:
    """Return the users of the version's own files."""
    return {
        user for uri in histories.files("histories/")
        for user in storage.read_table(uri)["user_id"].to_pylist()
    }


def files_that_name(folder: str, user_id: str) -> list[str]:
    """Return the files below a folder that hold a user's id, compressed or not."""
    found = []
    for name in storage.list_files(folder):
        uri, wanted = storage.join(folder, name), user_id.encode()
        held = storage.read_bytes(uri)
        if name.endswith(".parquet"):
            held += repr(storage.read_table(uri).to_pydict()).encode()
        if wanted in held:
            found.append(name)
    return found


def _write_entities(
    uri: str, items: Sequence[Mapping[str, Any]], users: Sequence[Mapping[str, Any]]
) -> None:
    for name, rows, schema in (
        ("items.parquet", items, items_schema(("genres",))),
        ("users.parquet", users, users_schema(("job",))),
    ):
        storage.write_table(storage.join(uri, name), pa.Table.from_pylist(rows, schema=schema))
