"""Histories -> slates of every window, partition by partition (Ray Data)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.data.layers import read_histories
from engine.data.negatives import ImplicitSlates, NegativeSampler, user_generator
from engine.data.schema import histories_of, part_name
from engine.data.slates import Slate, explicit_slates, slates_table
from engine.data.splits import read_timeline
from engine.stages.partitions import map_partitions
from engine.types import FeedbackKind, History, IntArray, Timeline, Window, Windows


def build_slates(run: str, config: EngineConfig, histories: Artifact) -> Artifact:
    """Return the artifact "slates": partition k holds the users of histories' partition k."""
    settings = {**config.slates.settings(), "label": config.source.label.kind}
    if config.source.label.kind == "implicit":
        settings["seed"] = config.run.seed
    write = partial(_write, config=config, histories=histories)
    return artifacts.make(run, "slates", settings, [histories], write)


def _write(uri: str, *, config: EngineConfig, histories: Artifact) -> dict[str, Any]:
    timeline = read_timeline(histories.path("timeline.json"))
    partitions = range(len(histories.files("histories/")))
    sampler = None
    if config.source.label.kind == "implicit":
        events = count_items(histories, timeline, partitions)
        sampler = NegativeSampler.from_counts(events, config.slates)
    builder = SlateBuilder(config, timeline, sampler)
    counts = map_partitions(partial(_write_partition, uri, histories.uri, builder), partitions)
    total = Counter[str]()
    for count in counts:
        total.update(count)
    return {name: total[name] for name in sorted(total)}


@dataclass(frozen=True, slots=True)
class SlateBuilder:
    """Everything that the slates of one user depend on beside the history."""

    config: EngineConfig
    windows: Windows
    sampler: NegativeSampler | None
    """None for feedback that carries its label."""

    def build(self, user_id: str, history: History) -> tuple[list[Slate], int]:
        """Return the user's slates in time order and the number of positives left out."""
        windows = self.windows.windows_of(user_id, history.timestamps_s)
        if self.sampler is None:
            return list(explicit_slates(history, windows, self.config.slates)), 0
        rng = user_generator(self.config.run.seed, user_id)
        builder = ImplicitSlates(history, windows, self.config.slates, self.sampler, rng)
        return list(builder), builder.dropped


def _write_partition(
    uri: str, histories: str, builder: SlateBuilder, partition: int
) -> dict[str, int]:
    table = read_histories(histories, partition)
    dropped = 0
    pairs: list[tuple[str, Slate]] = []
    for user_id, history in histories_of(table).items():
        slates, left_out = builder.build(user_id, history)
        pairs.extend((user_id, slate) for slate in slates)
        dropped += left_out
    storage.write_table(storage.join(uri, part_name("slates", partition)), slates_table(pairs))
    return {"dropped_positives": dropped, **_count(slate for _, slate in pairs)}


def _count(slates: Iterable[Slate]) -> Counter[str]:
    """Return slates, rows and positives of each window and kind, as paths."""
    counts = Counter[str]()
    for slate in slates:
        window = Window(slate.window).name.lower()
        counts[f"{window}/slates"] += 1
        for kind in np.unique(slate.kinds):
            rows = slate.labels[slate.kinds == kind]
            name = f"{window}/{FeedbackKind(kind).name.lower()}"
            counts[f"{name}/rows"] += len(rows)
            counts[f"{name}/positives"] += int(rows.sum())
    return counts


def count_items(histories: Artifact, timeline: Timeline, partitions: Sequence[int]) -> IntArray:
    """Return the events of each item before T1, by index."""
    num_items = len(storage.read_table(histories.path("items.parquet"), ["item_id"]))
    total = np.zeros(num_items + 1, np.int64)
    for items, counts in map_partitions(
        partial(_count_partition, histories.uri, timeline.t1_s), partitions
    ):
        total[items] += counts
    return total


def _count_partition(histories: str, end_s: int, partition: int) -> tuple[IntArray, IntArray]:
    table = read_histories(histories, partition, columns=["items", "timestamps_s"])
    items = table["items"].combine_chunks().flatten().to_numpy()
    times = table["timestamps_s"].combine_chunks().flatten().to_numpy()
    return np.unique(items[times < end_s], return_counts=True)
