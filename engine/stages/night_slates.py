"""Histories and roles -> the slates of one night, partition by partition (Ray Data, kind "slates").

    new rows of each role          of users who have any
    old rows, replayed             against forgetting: of an eighth of the partitions, drawn anew

A slate of a user, or of items, without newer events is likelier to be replayed. Cost: one pass over
the histories, slates of the new rows, and of all rows of the partitions that are drawn.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.data.layers import read_histories
from engine.data.negatives import NegativeSampler
from engine.data.roles import NightRows
from engine.data.sampling import Offer, reach_rows, sample_key, weighted_key
from engine.data.schema import histories_of, part_name
from engine.data.slates import Slate, slates_table
from engine.models.popularity import FILE as POPULARITY
from engine.models.popularity import Popularity
from engine.stages.partitions import map_partitions
from engine.stages.slates import SlateBuilder
from engine.types import History, IntArray, Window

REPLAY_SHARE = 8
"""One of so many partitions is drawn for a night's replay."""


def build_night_slates(
    run: str, config: EngineConfig, histories: Artifact, popularity: Artifact, rows: NightRows
) -> Artifact:
    """Return the artifact "slates": windows CRM, BANK and VALIDATION as `rows` says.

    Negatives of implicit feedback are drawn by `popularity`, which counts no row that judges.
    """
    settings = {
        **config.slates.settings(), "label": config.source.label.kind, "seed": config.run.seed,
        "rows": rows.to_json(), "replay": config.night.replay,
        "replay_weight": config.night.replay_weight,
    }
    write = partial(
        _write, config=config, histories=histories, popularity=popularity, rows=rows
    )
    return artifacts.make(run, "slates", settings, [histories, popularity], write)


def _write(
    uri: str, *, config: EngineConfig, histories: Artifact, popularity: Artifact, rows: NightRows
) -> dict[str, Any]:
    partitions = range(len(histories.files("histories/")))
    night = _Night(config, histories.uri, rows, _sampler(config, popularity))
    found = map_partitions(partial(night.write_new, uri), partitions)
    counts: Counter[str] = sum((count for count, _ in found), Counter())
    is_fresh_I = np.zeros(_num_items(histories) + 1, bool)
    for _, items in found:
        is_fresh_I[items] = True
    asked = _replayed(partitions, config.run.seed, rows.end_s)
    share = config.night.replay / (1 - config.night.replay)
    budgets = {
        window: round(share * counts[_name(window)]) for window in (Window.CRM, Window.BANK)
    }
    offers = map_partitions(partial(night.offer, is_fresh_I, budgets), asked)
    chosen = frozenset(
        slate_id for window, budget in budgets.items()
        for _, slate_id, _ in reach_rows([each for part in offers for each in part[window]], budget)
    )
    added = map_partitions(partial(night.add_old, uri, chosen), asked)
    for count in added:
        counts.update({f"replayed_{name}": rows for name, rows in count.items()})
    return {name: counts[name] for name in sorted(counts)}


def _replayed(partitions: Sequence[int], seed: int, end_s: int) -> list[int]:
    """Return the partitions whose old rows are looked at in the night that ends then."""
    drawn = sorted(partitions, key=lambda number: sample_key(seed, f"{end_s}:{number}"))
    return drawn[: -(-len(partitions) // REPLAY_SHARE)]


def _num_items(histories: Artifact) -> int:
    return int(storage.read_table(histories.path("items.parquet"), ["item_id"]).num_rows)


def _sampler(config: EngineConfig, popularity: Artifact) -> NegativeSampler | None:
    if config.source.label.kind != "implicit":
        return None
    events_I = Popularity.load(popularity.path(POPULARITY)).events
    return NegativeSampler.from_counts(events_I, config.slates)


def _name(window: int) -> str:
    return f"{Window(window).name.lower()}_rows"


@dataclass(frozen=True, slots=True)
class _Night:
    """Builds the slates of one partition: plain values that travel to a task."""

    config: EngineConfig
    histories: str
    rows: NightRows
    sampler: NegativeSampler | None

    def write_new(self, uri: str, partition: int) -> tuple[Counter[str], IntArray]:
        """Write what is new; return the rows of each window, and the items of new events."""
        pairs, items = self._new(partition)
        _store(uri, partition, pairs)
        return _count(pairs), items

    def offer(
        self, is_fresh_I: npt.NDArray[np.bool_], budgets: Mapping[Window, int], partition: int
    ) -> dict[Window, list[Offer]]:
        """Return the old slates that this partition proposes, by window."""
        offers: dict[Window, list[Offer]] = {window: [] for window in budgets}
        for user_id, slate, history in self._old(partition):
            is_idle = history.timestamps_s[-1] < self.rows.crm_since_s
            is_stale = is_fresh_I[slate.items].mean() < 0.5
            weight = self.config.night.replay_weight ** (int(is_idle) + int(is_stale))
            slate_id = f"{user_id}:{slate.first}"
            offers[Window(slate.window)].append((
                weighted_key(self.config.run.seed, f"{self.rows.end_s}:{slate_id}", weight),
                slate_id, len(slate.items),
            ))
        return {window: reach_rows(offers[window], budget) for window, budget in budgets.items()}

    def add_old(self, uri: str, chosen: frozenset[str], partition: int) -> Counter[str]:
        """Write a partition again with the chosen old slates; return their rows by window."""
        old = [
            (user_id, slate) for user_id, slate, _ in self._old(partition)
            if f"{user_id}:{slate.first}" in chosen
        ]
        _store(uri, partition, [*self._new(partition)[0], *old])
        return _count(old)

    def _new(self, partition: int) -> tuple[list[tuple[str, Slate]], IntArray]:
        rows = self.rows
        since_s = min(rows.crm_since_s, rows.bank_since_s, rows.tune_since_s)
        builder = SlateBuilder(self.config, rows, self.sampler)
        pairs: list[tuple[str, Slate]] = []
        items: list[IntArray] = [np.zeros(0, np.int32)]
        table = read_histories(self.histories, partition)
        for user_id, history in histories_of(active_since(table, since_s)).items():
            pairs += [(user_id, slate) for slate in builder.build(user_id, history)[0]]
            counted = rows.roles.counted(user_id, history)
            items.append(counted.items[counted.timestamps_s >= rows.crm_since_s])
        return pairs, np.unique(np.concatenate(items))

    def _old(self, partition: int) -> Iterable[tuple[str, Slate, History]]:
        builder = SlateBuilder(self.config, replace(self.rows, is_replay=True), self.sampler)
        for user_id, history in histories_of(read_histories(self.histories, partition)).items():
            for slate in builder.build(user_id, history)[0]:
                yield user_id, slate, history


def active_since(histories: pa.Table, since_s: int) -> pa.Table:
    """Return the rows of a histories table whose last event is not before a time."""
    times = histories["timestamps_s"].combine_chunks()
    ends = times.offsets.to_numpy()[1:]
    last_s = times.values.to_numpy()[ends - 1] if len(ends) else np.zeros(0, np.int64)
    return histories.filter(pa.array(last_s >= since_s))


def _count(pairs: Iterable[tuple[str, Slate]]) -> Counter[str]:
    counts = Counter[str]()
    for _, slate in pairs:
        counts[_name(slate.window)] += len(slate.items)
    return counts


def _store(uri: str, partition: int, pairs: Sequence[tuple[str, Slate]]) -> None:
    by_user = sorted(pairs, key=lambda pair: (pair[0], pair[1].first))
    storage.write_table(storage.join(uri, part_name("slates", partition)), slates_table(by_user))
