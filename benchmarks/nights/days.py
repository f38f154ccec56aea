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


def cut_days(run: str, interactions: Artifact, shares: Sequence[float]) -> list[Day]:
    """Return the base and the days that end at these shares of all events, by time."""
    write = partial(_write, interactions=interactions, shares=shares)
    days = artifacts.make(run, "days", {"shares": list(shares)}, [interactions], write)
    return [
        Day(each["start_s"], each["end_s"], days.path(each["folder"]), each["events"])
        for each in days.facts["days"]
    ]


def _write(uri: str, *, interactions: Artifact, shares: Sequence[float]) -> dict[str, Any]:
    events = pa.concat_tables(map(storage.read_table, interactions.files("interactions/")))
    items = storage.read_table(interactions.path("items.parquet"))
    users = storage.read_table(interactions.path("users.parquet"))
    ends = _ends(np.sort(events["timestamp_s"].to_numpy()), shares)
    days = []
    for number, (start_s, end_s) in enumerate(pairwise([0, *ends])):
        folder = f"day-{number:03d}"
        times = events["timestamp_s"]
        part = events.filter(pc.and_(pc.greater_equal(times, start_s), pc.less(times, end_s)))
        write_source(
            storage.join(uri, folder), part, _of(items, "item_id", part),
            _of(users, "user_id", part),
        )
        days.append({"start_s": start_s, "end_s": end_s, "folder": folder, "events": len(part)})
    return {"days": days}


def _ends(times_s: IntArray, shares: Sequence[float]) -> list[int]:
    """Return the time at which each share of the events has passed."""
    last = len(times_s) - 1
    return [int(times_s[min(last, round(share * last))]) + 1 for share in shares]


def _of(entities: pa.Table, column: str, events: pa.Table) -> pa.Table:
    """Return the items or users that a day's events name."""
    return entities.filter(pc.is_in(entities[column], pc.unique(events[column])))
