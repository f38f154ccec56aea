import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import SplitConfig
from engine.data.splits import (
    DAY_S,
    count_days,
    count_seconds,
    cut_days,
    cut_targets,
    find_timeline,
    merge_counts,
    read_timeline,
    write_timeline,
)
from engine.errors import DataError
from engine.types import IntArray, Timeline, Window


def _find(parts: list[IntArray], config: SplitConfig) -> tuple[Timeline, dict[Window, int]]:
    """Run both passes over partitions of times."""
    days = merge_counts(count_days(part) for part in parts)
    chosen = cut_days(days, config)
    seconds = merge_counts(count_seconds(part, chosen) for part in parts)
    times = np.concatenate(parts)
    return find_timeline(days, seconds, config, (int(times.min()), int(times.max())))


def test_ten_days_of_ten_events_are_cut_at_6_4_8_and_9_days() -> None:
    times = np.concatenate([day * DAY_S + 60 * np.arange(10) for day in range(10)])
    timeline, sizes = _find([times[::2], times[1::2]], SplitConfig())
    assert timeline == Timeline(0, 6 * DAY_S + 240, 8 * DAY_S, 9 * DAY_S, 9 * DAY_S + 540)
    assert sizes == {Window.CRM: 64, Window.BANK: 16, Window.VALIDATION: 10, Window.TEST: 10}


def test_a_second_of_many_events_falls_on_the_nearer_side() -> None:
    config = SplitConfig(train=0.8, validation=0.1, crm=0.5)
    times = np.repeat([10, 20, 30, 40, 50], [38, 20, 24, 8, 10])        # borders 38 58 82 90
    timeline, sizes = _find([times], config)
    assert (timeline.t0_s, timeline.t1_s, timeline.t2_s) == (20, 31, 50)
    assert list(sizes.values()) == [38, 44, 8, 10]


@given(
    st.lists(st.integers(0, 5 * DAY_S), min_size=40, max_size=200), st.integers(1, 5),
    st.booleans(),
)
def test_cuts_are_those_of_a_global_sort(times: list[int], partitions: int, coarse: bool) -> None:
    values = np.sort(np.array(times) // (3_600 if coarse else 1) * (3_600 if coarse else 1))
    config = SplitConfig()
    try:
        timeline, sizes = _find([values[k::partitions] for k in range(partitions)], config)
    except DataError:
        assert coarse or len(set(times)) < len(times)
        return
    cuts = (timeline.t0_s, timeline.t1_s, timeline.t2_s)
    borders = np.searchsorted(values, np.unique(values))                # all possible counts
    for cut, target in zip(cuts, cut_targets(len(values), config), strict=True):
        found = np.searchsorted(values, cut)
        assert abs(found - target) == abs(np.append(borders, len(values)) - target).min()
    windows = timeline.window_of(values)
    assert [int((windows == window).sum()) for window in Window] == list(sizes.values())
    assert min(sizes.values()) > 0


@pytest.mark.parametrize("times", [np.full(100, 7), np.repeat([1, 2, 3], 30), np.arange(3)])
def test_an_empty_window_is_refused_by_name(times: IntArray) -> None:
    with pytest.raises(DataError, match=r"window (CRM|BANK|VALIDATION|TEST) .* would be empty"):
        _find([times], SplitConfig())


def test_a_timeline_survives_its_file(tmp_path: object) -> None:
    timeline = Timeline(1, 2, 3, 4, 5)
    write_timeline(f"{tmp_path}/timeline.json", timeline)
    assert read_timeline(f"{tmp_path}/timeline.json") == timeline
