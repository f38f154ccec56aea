"""Cut times of the one timeline, from small histograms instead of a global sort.

    per partition: events by day -> days that hold a cut -> events by second of those days -> cuts
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict

import numpy as np

from engine import storage
from engine.config import SplitConfig
from engine.errors import DataError
from engine.types import IntArray, Timeline, Window

DAY_S = 86_400

Histogram = Mapping[int, int]
"""Day or second -> events."""


def count_days(timestamps_s: IntArray) -> dict[int, int]:
    """Return the events of each day since 1970."""
    return _count(timestamps_s // DAY_S)


def count_seconds(timestamps_s: IntArray, days: Iterable[int]) -> dict[int, int]:
    """Return the events of each second of some days."""
    inside = np.isin(timestamps_s // DAY_S, list(days))
    return _count(timestamps_s[inside])


def _count(values: IntArray) -> dict[int, int]:
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def merge_counts(histograms: Iterable[Histogram]) -> dict[int, int]:
    """Return the sum of the partitions' histograms, in key order."""
    total = Counter[int]()
    for histogram in histograms:
        total.update(histogram)
    return dict(sorted(total.items()))


def cut_targets(events: int, config: SplitConfig) -> tuple[int, int, int]:
    """Return how many events should lie before T0, T1 and T2."""
    train = config.train * events
    return (
        round(config.crm * train), round(train), round((config.train + config.validation) * events)
    )


def cut_days(days: Histogram, config: SplitConfig) -> list[int]:
    """Return the days in which the cuts fall."""
    keys, before = _cumulate(days)
    targets = cut_targets(int(before[-1]), config)
    return sorted({int(keys[_bin_of(before, target)]) for target in targets})


def _cumulate(histogram: Histogram) -> tuple[IntArray, IntArray]:
    """Return the keys in order, and the events before each of them and after the last."""
    keys = np.array(sorted(histogram), np.int64)
    counts = np.array([histogram[int(key)] for key in keys], np.int64)
    return keys, np.concatenate([[0], np.cumsum(counts)])


def _bin_of(before: IntArray, target: int) -> int:
    """Return the bin that holds the event of that 0-based rank; the last one beyond the end."""
    return min(int(np.searchsorted(before, target, side="right")), len(before) - 1) - 1


def find_timeline(
    days: Histogram, seconds: Histogram, config: SplitConfig, ends_s: tuple[int, int]
) -> tuple[Timeline, dict[Window, int]]:
    """Return the cuts and the events of each window.

    A cut is the border of a second that comes nearest to its target. `seconds` covers `cut_days`;
    `ends_s` are the times of the first and the last event. Raises DataError if a window would be
    empty.
    """
    keys, before = _cumulate(days)
    events = int(before[-1])
    cuts_s, counts = [], [0]
    for target in cut_targets(events, config):
        day = _bin_of(before, target)
        within = {s: count for s, count in seconds.items() if s // DAY_S == keys[day]}
        cut_s, count = _nearest_border(within, target - int(before[day]))
        cuts_s.append(cut_s)
        counts.append(count + int(before[day]))
    sizes = dict(zip(Window, np.diff([*counts, events]).tolist(), strict=True))
    for window, size in sizes.items():
        if size <= 0:
            raise DataError(
                f"window {window.name} of the timeline would be empty: {events} events, cuts at "
                f"{cuts_s}; there are too few different times, or split leaves it too small a share"
            )
    t0_s, t1_s, t2_s = cuts_s
    return Timeline(ends_s[0], t0_s, t1_s, t2_s, ends_s[1]), sizes


def _nearest_border(seconds: Histogram, target: int) -> tuple[int, int]:
    """Return the cut time next to `target` events of a day, and the events before it.

    The border before or after the second that holds the event of that rank; the earlier if equal.
    """
    keys, before = _cumulate(seconds)
    place = _bin_of(before, target)
    below, above = int(before[place]), int(before[place + 1])
    if target - below <= above - target:
        return int(keys[place]), below
    return int(keys[place]) + 1, above


def write_timeline(uri: str, timeline: Timeline) -> None:
    """Write the cut times as JSON."""
    storage.write_json(uri, asdict(timeline))


def read_timeline(uri: str) -> Timeline:
    """Read the cut times from JSON."""
    return Timeline(**storage.read_json(uri))
