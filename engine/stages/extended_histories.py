"""Histories + the interactions of a day -> the next version of the histories (Ray Data).

    of each partition: the day's new events + what their users had -> the users who changed, whole

The version lies upon its parent (engine/data/layers.py), so a night costs what its day holds; items
and profiles are written whole. After `night.keep_layers` versions all users are written anew.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from engine import artifacts, storage
from engine.artifacts import Artifact, open_artifact
from engine.config import EngineConfig
from engine.data.deletions import Deletions
from engine.data.entities import extend_items, extend_users
from engine.data.histories import build_histories, events_of, fresh_events
from engine.data.layers import (
    DELETED_FILE,
    LAYERS_FILE,
    layer_names,
    lower_versions,
    overlay,
    read_deletions,
    read_histories,
    split_folder,
    write_histories,
)
from engine.data.schema import items_schema, part_name, users_schema
from engine.data.splits import read_timeline, write_timeline
from engine.errors import ArtifactError, ConfigError, DataError
from engine.stages.partitions import map_partitions
from engine.types import Timeline


def extend_histories(
    run: str, config: EngineConfig, parent: Artifact, interactions: Artifact, *,
    end_s: int, deleted: Deletions, ahead_s: int = 0,
) -> Artifact:
    """Return the artifact "histories" of the parent and the interactions before `end_s + ahead_s`.

    The timeline is cut at `end_s`: what is later is new to the next night. An event that is known
    (user, item, time) is not taken again, a late one has its place in time. `deleted` joins the
    deletions of the parent. Raises ConfigError if parent and day were imported differently,
    DataError if the parent ends later, ArtifactError if it is not whole in this run.
    """
    _check(run, config, parent, interactions, end_s)
    settings = {
        "end_s": end_s, "ahead_s": ahead_s, "keep_layers": config.night.keep_layers,
        **deleted.settings(),
    }
    write = partial(
        _write, config=config, parent=parent, interactions=interactions, end_s=end_s,
        deleted=deleted, ahead_s=ahead_s,
    )
    return artifacts.make(run, "histories", settings, [parent, interactions], write)


def _check(
    run: str, config: EngineConfig, parent: Artifact, interactions: Artifact, end_s: int
) -> None:
    folder, _ = split_folder(parent.uri)
    if folder != storage.absolute(run).rstrip("/"):
        raise ArtifactError(f"{parent.uri} is not in {run}: a version lies beside its parent")
    for uri in lower_versions(parent.uri):
        open_artifact(uri, "histories")
    counts = [len(parent.files("histories/")), len(interactions.files("interactions/"))]
    if counts[0] != counts[1]:
        raise ConfigError(
            f"histories.num_partitions: the day was imported with {counts[1]}, "
            f"{parent.uri} has {counts[0]}"
        )
    label = config.source.label.settings()
    if parent.facts.get("label") != label:
        raise ConfigError(
            f"source.label is {label}, that of {parent.uri} {parent.facts.get('label')}"
        )
    parent_end_s = read_timeline(parent.path("timeline.json")).t2_s
    if end_s < parent_end_s:
        raise DataError(
            f"the night ends at {end_s} s, {parent.uri} at {parent_end_s} s: it knows what is later"
        )


def _write(
    uri: str, *, config: EngineConfig, parent: Artifact, interactions: Artifact, end_s: int,
    deleted: Deletions, ahead_s: int,
) -> dict[str, Any]:
    told, deleted = deleted, deleted.merged(read_deletions(parent.uri))
    layers = [split_folder(parent.uri)[1], *layer_names(parent.uri)]
    if len(layers) > config.night.keep_layers:
        layers = []                             # a base: no row of a deleted user is in it
        cleared = Cleared.of(told)
    else:
        cleared = Cleared.read(parent).still(told)
        storage.write_json(storage.join(uri, LAYERS_FILE), layers)
        masked = deleted.without(cleared.among(told))
        storage.write_table(storage.join(uri, DELETED_FILE), masked.to_table())
    new_items = _write_entities(uri, config, parent, interactions, deleted)
    before = read_timeline(parent.path("timeline.json"))
    day = _Day(
        parent.uri, interactions.uri, end_s + ahead_s, max(before.t2_s, before.end_s), deleted,
        not layers,
    )
    partitions = range(len(interactions.files("interactions/")))
    parts = map_partitions(partial(day.write_partition, uri), partitions)
    ends_s = [part.ends_s for part in parts if part.ends_s]
    write_timeline(storage.join(uri, "timeline.json"), Timeline(
        min([before.start_s, *(first for first, _ in ends_s)]), end_s, end_s, end_s,
        max([before.end_s, *(last for _, last in ends_s)]),
    ))
    return {
        **_sum(parts), "new_items": new_items,
        "longest": max([parent.facts["longest"], *(part.longest for part in parts)]),
        "label": config.source.label.settings(), "layers": len(layers), **cleared.facts(),
    }


@dataclass(frozen=True, slots=True)
class Cleared:
    """Deletions of whose users no file holds older events, neither the base's nor a later one: who
    is masked there need not be named. A digest tells whether they are among others, naming nobody.
    """

    until_s: int = 0
    sha256: str | None = None
    """None: of nobody is that known."""

    @classmethod
    def of(cls, deleted: Deletions) -> Self:
        """Return what a base has left out."""
        return cls(pc.max(deleted.deleted_s).as_py() or 0, deleted.settings().get("deletions"))

    @classmethod
    def read(cls, histories: Artifact) -> Self:
        """Return those of a version; of a base of a whole training nothing is known."""
        return cls(**histories.facts.get("cleared", {}))

    def among(self, told: Deletions) -> Deletions:
        """Return them; nobody if they are not all there, as when one was deleted again."""
        early = told.until(self.until_s)
        is_same = self.sha256 is not None and early.settings().get("deletions") == self.sha256
        return early if is_same else Deletions.of({})

    def still(self, told: Deletions) -> "Cleared":
        """Return them for a version upon this one that leaves out who it was told."""
        return self if len(self.among(told).user_ids) else Cleared()

    def facts(self) -> dict[str, Any]:
        """Return JSON values; nothing if there is nobody."""
        return {} if self.sha256 is None else {"cleared": asdict(self)}


def _write_entities(
    uri: str, config: EngineConfig, parent: Artifact, interactions: Artifact, deleted: Deletions
) -> int:
    """Write catalogue and profiles; return the number of new items."""
    source, (items, users) = config.source, (
        [storage.read_table(each.path(name)) for each in (parent, interactions)]
        for name in ("items.parquet", "users.parquet")
    )
    for tables, schema, setting in (
        (items, items_schema(source.item_fields), "item_fields"),
        (users, users_schema(source.user_fields), "user_fields"),
    ):
        for each in tables:
            if each.schema != schema:
                raise ConfigError(
                    f"source.{setting} gives {schema.names}, {parent.uri} and {interactions.uri} "
                    f"have {each.schema.names}"
                )
    profiles = extend_users(*(deleted.without_users(each) for each in users))
    catalogue = extend_items(*items)
    storage.write_table(storage.join(uri, "items.parquet"), catalogue)
    storage.write_table(storage.join(uri, "users.parquet"), profiles)
    return len(catalogue) - len(items[0])


@dataclass(frozen=True, slots=True)
class _Part:
    """What became of one partition."""

    counts: Counter[str]
    longest: int
    ends_s: tuple[int, int] | None
    """Times of the first and the last new event, if there is one."""


def _sum(parts: Sequence[_Part]) -> dict[str, int]:
    total = sum((part.counts for part in parts), Counter[str]())
    return {name: total[name] for name in (
        "users", "new_users", "events", "duplicates", "late_events", "future_events",
        "deleted_events",
    )}


@dataclass(frozen=True, slots=True)
class _Day:
    """A day's events and what they are merged into."""

    parent: str
    interactions: str
    end_s: int
    late_s: int
    """Events before it are late."""
    deleted: Deletions
    is_base: bool
    """Whether the users who did not change are written, too."""

    def write_partition(self, uri: str, partition: int) -> _Part:
        """Write the histories that changed; return what was found."""
        table = storage.read_table(storage.join(uri, "items.parquet"), ["item_id"])
        item_ids = table["item_id"].combine_chunks()
        counts = Counter[str]()
        events = self._events(partition, counts)
        known = self._known(partition, pc.unique(events["user_id"]), item_ids)
        fresh = fresh_events(events, known)
        counts.update(events=len(fresh), duplicates=len(events) - len(fresh))
        changed = pc.unique(fresh["user_id"])
        old = known.filter(pc.is_in(known["user_id"], changed))
        histories = build_histories(pa.concat_tables([old, fresh]), item_ids)
        counts.update(
            users=len(changed), new_users=len(changed) - len(pc.unique(old["user_id"])),
            late_events=pc.sum(pc.less(fresh["timestamp_s"], self.late_s)).as_py() or 0,
        )
        self._write(uri, partition, histories)
        ends_s = pc.min_max(fresh["timestamp_s"]).as_py()
        return _Part(
            counts, pc.max(pc.list_value_length(histories["items"])).as_py() or 0,
            (ends_s["min"], ends_s["max"]) if len(fresh) else None,
        )

    def _events(self, partition: int, counts: Counter[str]) -> pa.Table:
        """Return the day's events that may be taken, and count the others."""
        rows = storage.read_table(
            storage.join(self.interactions, part_name("interactions", partition))
        )
        remaining = self.deleted.later_events(rows)
        past = remaining.filter(pc.less(remaining["timestamp_s"], self.end_s))
        counts.update(
            deleted_events=len(rows) - len(remaining), future_events=len(remaining) - len(past)
        )
        return past

    def _known(self, partition: int, users: pa.Array, item_ids: pa.Array) -> pa.Table:
        """Return what the parent knows of some users, as INTERACTIONS."""
        histories = read_histories(self.parent, partition, users)
        return events_of(self.deleted.later_histories(histories), item_ids)

    def _write(self, uri: str, partition: int, changed: pa.Table) -> None:
        if self.is_base:
            others = self.deleted.later_histories(read_histories(self.parent, partition))
            changed = overlay([changed, others])
        write_histories(uri, partition, changed)
