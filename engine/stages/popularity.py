"""Stage: histories -> popularity (kind "popularity"): counts of each item before T1.

Partitions are counted in parallel; each yields two vectors of the catalogue's length, added here.
With roles the events that train the CRM are counted, whenever they happened.
"""

from functools import partial
from typing import Any

import numpy as np
import ray.data

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.data.layers import read_histories
from engine.data.roles import Roles
from engine.data.schema import histories_of
from engine.data.splits import read_timeline
from engine.models import popularity
from engine.models.popularity import Popularity, count_events
from engine.types import History, IntArray

KIND = "popularity"


def count_popularity(
    run: str, config: EngineConfig, histories: Artifact, roles: Roles | None = None
) -> Artifact:
    """Return popularity.safetensors: scores, positives and events by item, from before T1."""
    implicit = config.source.label.kind == "implicit"
    smoothing = config.evaluation.popularity_smoothing
    settings: dict[str, Any] = {"smoothing": smoothing, "implicit": implicit}
    if roles is not None:
        settings["roles"] = roles.to_json()

    def write(folder: str) -> dict[str, Any]:
        positives, events = _count_all(histories, roles)
        counted = Popularity.fit(positives, events, smoothing=smoothing, implicit=implicit)
        counted.save(storage.join(folder, popularity.FILE))
        return {
            "events": int(events.sum()), "positives": int(positives.sum()),
            "items_seen": int((events > 0).sum()), "items": len(events) - 1,
        }

    return artifacts.make(run, KIND, settings, [histories], write)


def count_partition(
    row: dict[str, Any], *, histories: str, before_s: int, num_items: int,
    roles: Roles | None = None,
) -> dict[str, Any]:
    """Count the events of one partition."""
    items, labels, timestamps_s = _counted(histories, int(row["partition"]), roles)
    positives, events = count_events(
        items, labels, timestamps_s, before_s=before_s, num_items=num_items
    )
    return {"positives": positives, "events": events}


def _counted(
    uri: str, partition: int, roles: Roles | None
) -> tuple[IntArray, IntArray, IntArray]:
    """Return items, labels and times of the events that may be counted."""
    if roles is not None:
        users = histories_of(read_histories(uri, partition)).items()
        kept = [History.empty(), *(roles.counted(user_id, history) for user_id, history in users)]
        return (
            np.concatenate([history.items for history in kept]),
            np.concatenate([history.labels for history in kept]),
            np.concatenate([history.timestamps_s for history in kept]),
        )
    columns = ["items", "labels", "timestamps_s"]
    table = read_histories(uri, partition, columns=columns)
    items, labels, timestamps_s = (
        table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False) for name in columns
    )
    return items, labels, timestamps_s


def _count_all(histories: Artifact, roles: Roles | None) -> tuple[IntArray, IntArray]:
    catalogue = storage.read_table(histories.path("items.parquet"), ["item_id"])
    num_items = catalogue.num_rows + 1
    timeline = read_timeline(histories.path("timeline.json"))
    before_s = timeline.t1_s if roles is None else timeline.end_s + 1
    partitions = range(len(histories.files("histories/")))
    count = partial(
        count_partition, histories=histories.uri, before_s=before_s, num_items=num_items,
        roles=roles,
    )
    counted = ray.data.from_items(
        [{"partition": number} for number in partitions], override_num_blocks=len(partitions)
    ).map(count)
    positives, events = np.zeros(num_items, np.int64), np.zeros(num_items, np.int64)
    for row in counted.iter_rows():
        positives += row["positives"]
        events += row["events"]
    return positives, events
