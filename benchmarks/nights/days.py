"""Interactions of a whole data set -> a folder of new events for the base and for each day."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.stages.collected import write_source
from engine.types import IntArray


@dataclass(frozen=True, slots=True)
class Day:
    """Events of start <= time < end, in a folder that can be imported."""

    start_s: int
    end_s: int
    folder: str
    events: int


def cut_days(run: str, interactions: Artifact, shares: Sequence[float]) -> Artifact:
    """Return the artifact of the base and the days that end at these shares of all events, by time.
    """
    write = partial(_write, interactions=interactions, shares=shares)
    return artifacts.make(run, "days", {"shares": list(shares)}, [interactions], write)


def days_of(days: Artifact) -> list[Day]:
    """Return the base and the days."""
    return [
        Day(each["start_s"], each["end_s"], days.path(each["folder"]), each["events"])
        for each in days.facts["days"]
    ]


def events_until(run: str, interactions: Artifact, end_s: int) -> str:
    """Return the folder of all events before a time, which can be imported."""
    def write(uri: str) -> dict[str, Any]:
        return {"events": _Events.read(interactions).write_between(uri, 0, end_s)}

    return artifacts.make(run, "until", {"end_s": end_s}, [interactions], write).uri


def _write(uri: str, *, interactions: Artifact, shares: Sequence[float]) -> dict[str, Any]:
    whole = _Events.read(interactions)
    ends = _ends(np.sort(whole.events["timestamp_s"].to_numpy()), shares)
    days = []
    for number, (start_s, end_s) in enumerate(pairwise([0, *ends])):
        folder = f"day-{number:03d}"
        events = whole.write_between(storage.join(uri, folder), start_s, end_s)
        days.append({"start_s": start_s, "end_s": end_s, "folder": folder, "events": events})
    return {"days": days}


@dataclass(frozen=True, slots=True)
class _Events:
    """All that was imported, read once."""

    events: pa.Table
    items: pa.Table
    users: pa.Table

    @classmethod
    def read(cls, interactions: Artifact) -> "_Events":
        return cls(
            pa.concat_tables(map(storage.read_table, interactions.files("interactions/"))),
            storage.read_table(interactions.path("items.parquet")),
            storage.read_table(interactions.path("users.parquet")),
        )

    def write_between(self, uri: str, start_s: int, end_s: int) -> int:
        """Write the events of a time and what they name; return how many there are."""
        times = self.events["timestamp_s"]
        part = self.events.filter(pc.and_(pc.greater_equal(times, start_s), pc.less(times, end_s)))
        write_source(
            uri, part, _of(self.items, "item_id", part), _of(self.users, "user_id", part)
        )
        return len(part)


def _ends(times_s: IntArray, shares: Sequence[float]) -> list[int]:
    """Return the time at which each share of the events has passed."""
    last = len(times_s) - 1
    return [int(times_s[min(last, round(share * last))]) + 1 for share in shares]


def _of(entities: pa.Table, column: str, events: pa.Table) -> pa.Table:
    """Return the items or users that a day's events name."""
    return entities.filter(pc.is_in(entities[column], pc.unique(events[column])))
