"""A day of events -> the same day with wrong ratings."""

from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.data.schema import part_name
from engine.types import IntArray

How = Literal["flip", "draw"]
ROWS, ENTITIES = part_name("interactions", 0), ("items.parquet", "users.parquet")


def poison_day(
    run: str, days: Artifact, folder: str, how: How, share: float, seed: int
) -> Artifact:
    """Return "poisoned", a folder as the day's: a share of its events has the rating and label of
    another.

    how: `flip`: of one with the other label; `draw`: of any one of the day.
    """
    write = partial(_write, folder=folder, how=how, share=share, seed=seed)
    settings = {"folder": folder.rpartition("/")[2], "how": how, "share": share, "seed": seed}
    return artifacts.make(run, "poisoned", settings, [days], write)


def _write(uri: str, *, folder: str, how: How, share: float, seed: int) -> dict[str, Any]:
    for name in ENTITIES:
        storage.write_table(
            storage.join(uri, name), storage.read_table(storage.join(folder, name))
        )
    events = storage.read_table(storage.join(folder, ROWS))
    poisoned = poison(events, how, share, np.random.default_rng(seed))
    storage.write_table(storage.join(uri, ROWS), poisoned)
    before, after = (each["label"].to_numpy() for each in (events, poisoned))
    return {"events": len(events), "changed_labels": int((before != after).sum())}


def poison(events: pa.Table, how: How, share: float, rng: np.random.Generator) -> pa.Table:
    """Return the events; `share` of them, drawn at random, with another one's rating and label."""
    labels = events["label"].to_numpy()
    chosen = np.flatnonzero(rng.random(len(events)) < share)
    source = np.arange(len(events))
    source[chosen] = (
        rng.integers(0, len(events), len(chosen)) if how == "draw"
        else _of_other_label(labels, chosen, rng)
    )
    for name in ("rating", "label"):
        place = events.schema.get_field_index(name)
        events = events.set_column(place, events.field(place), events[name].take(source))
    return events


def _of_other_label(labels: IntArray, chosen: IntArray, rng: np.random.Generator) -> IntArray:
    """Return for each chosen event one with the other label; itself where there is none."""
    found = chosen.copy()
    for label in (0, 1):
        others, own = np.flatnonzero(labels != label), np.flatnonzero(labels[chosen] == label)
        if len(others):
            found[own] = rng.choice(others, len(own))
    return found
