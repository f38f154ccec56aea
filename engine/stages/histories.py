"""Interactions -> one history for each user, the catalogue and the timeline (Ray Data).

A night's version (engine/data/layers.py) is extended_histories.py's.
"""

from functools import partial
from typing import Any

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.data.histories import build_histories as build_partition
from engine.data.layers import write_histories
from engine.data.schema import part_name
from engine.data.splits import (
    count_days,
    count_seconds,
    cut_days,
    find_timeline,
    merge_counts,
    write_timeline,
)
from engine.stages.partitions import map_partitions

VERSION = 2
"""2: the facts name the label."""


def build_histories(run: str, config: EngineConfig, interactions: Artifact) -> Artifact:
    """Return the artifact "histories"; raises DataError if a window of the timeline is empty."""
    write = partial(_write, config=config, interactions=interactions)
    settings = {"split": config.split.settings()}
    return artifacts.make(run, "histories", settings, [interactions], write, version=VERSION)


def _write(uri: str, *, config: EngineConfig, interactions: Artifact) -> dict[str, Any]:
    for name in ("items.parquet", "users.parquet"):
        storage.copy_file(interactions.path(name), storage.join(uri, name))
    partitions = range(len(interactions.files("interactions/")))
    counts = map_partitions(partial(_write_partition, uri, interactions.uri), partitions)
    days = merge_counts(count["days"] for count in counts)
    chosen = cut_days(days, config.split)
    seconds = map_partitions(partial(_count_seconds, interactions.uri, chosen), partitions)
    ends = [count["ends_s"] for count in counts if count["ends_s"]]
    ends_s = min(first for first, _ in ends), max(last for _, last in ends)
    timeline, sizes = find_timeline(days, merge_counts(seconds), config.split, ends_s)
    write_timeline(storage.join(uri, "timeline.json"), timeline)
    return {
        "users": sum(count["users"] for count in counts),
        "events": sum(count["events"] for count in counts),
        "longest": max(count["longest"] for count in counts),
        "label": config.source.label.settings(),
        "windows": {window.name.lower(): size for window, size in sizes.items()},
    }


def _write_partition(uri: str, interactions: str, partition: int) -> dict[str, Any]:
    rows = storage.read_table(storage.join(interactions, part_name("interactions", partition)))
    item_ids = storage.read_table(storage.join(interactions, "items.parquet"), ["item_id"])
    histories = build_partition(rows, item_ids["item_id"].combine_chunks())
    write_histories(uri, partition, histories)
    times = rows["timestamp_s"].to_numpy()
    return {
        "users": len(histories), "events": len(rows), "days": count_days(times),
        "longest": max(histories["items"].combine_chunks().value_lengths().to_pylist(), default=0),
        "ends_s": (int(times.min()), int(times.max())) if len(times) else None,
    }


def _count_seconds(interactions: str, days: list[int], partition: int) -> dict[int, int]:
    uri = storage.join(interactions, part_name("interactions", partition))
    rows = storage.read_table(uri, ["timestamp_s"])
    return count_seconds(rows["timestamp_s"].to_numpy(), days)
