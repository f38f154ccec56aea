"""Histories -> slates: consecutive rows of one user and window that share one history.

A slate's own history ends strictly before its first row, a row's strictly before that row: events
of one second are never in each other's history.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from engine.config import SlateConfig
from engine.data.schema import SLATES
from engine.types import NO_WINDOW, FeedbackKind, History, IntArray


@dataclass(frozen=True, slots=True)
class Slate:
    """One slate; all arrays have length M."""

    first: int
    """Position of its first row in the history."""
    window: int
    history_length: int
    """Events strictly before the first row."""
    items: IntArray
    labels: IntArray
    kinds: IntArray
    timestamps_s: IntArray
    """A drawn negative has the time of a positive."""
    row_history_lengths: IntArray
    """Events strictly before each row."""


def slate_end(
    times_s: IntArray, windows: IntArray, start: int, max_rows: int, max_span_s: int
) -> int:
    """Return the end of the slate that starts at a row of a history; the times are sorted."""
    in_span = int(np.searchsorted(times_s, times_s[start] + max_span_s, side="right"))
    end = min(start + max_rows, in_span)
    others = np.flatnonzero(windows[start:end] != windows[start])
    return start + int(others[0]) if len(others) else end


def next_row(windows: IntArray, start: int) -> int:
    """Return the first row from `start` on that is in a window; the number of rows if none is."""
    if start < len(windows) and windows[start] != NO_WINDOW:
        return start
    inside = np.flatnonzero(windows[start:] != NO_WINDOW)
    return start + int(inside[0]) if len(inside) else len(windows)


def events_before(history: History) -> IntArray:
    """Return the number of events strictly before each event."""
    return np.searchsorted(history.timestamps_s, history.timestamps_s, side="left")


def explicit_slates(
    history: History, windows: IntArray, config: SlateConfig
) -> Iterator[Slate]:
    """Yield the slates of a user whose events carry labels; rows in order of time.

    `windows`: that of each row, or NO_WINDOW for a row that is in no slate.
    """
    times, before = history.timestamps_s, events_before(history)
    start = next_row(windows, 0)
    while start < len(history):
        end = slate_end(times, windows, start, config.max_size, config.max_span_s)
        rows = slice(start, end)
        yield Slate(
            start, int(windows[start]), int(before[start]), history.items[rows],
            history.labels[rows], np.full(end - start, FeedbackKind.EXPLICIT), times[rows],
            before[rows],
        )
        start = next_row(windows, end)


def slates_table(slates: Iterable[tuple[str, Slate]]) -> pa.Table:
    """Return the table of (user id, slate) pairs, in their order."""
    columns: dict[str, list[object]] = {name: [] for name in SLATES.names}
    for user_id, slate in slates:
        row = {
            "slate_id": f"{user_id}:{slate.first}", "user_id": user_id, "window": slate.window,
            "history_length": slate.history_length, "items": slate.items, "labels": slate.labels,
            "kinds": slate.kinds, "timestamps_s": slate.timestamps_s,
            "row_history_lengths": slate.row_history_lengths,
        }
        for name, values in columns.items():
            values.append(row[name])
    return pa.table(columns, schema=SLATES)
