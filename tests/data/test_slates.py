import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from engine.config import SlateConfig
from engine.data.schema import SLATES
from engine.data.slates import explicit_slates, slates_table
from engine.types import NO_WINDOW, FeedbackKind, History, IntArray, Timeline

TIMELINE = Timeline(0, 40, 60, 80, 100)


def _history(times: list[int]) -> History:
    count = len(times)
    return History(
        np.arange(1, count + 1, dtype=np.int32), np.full(count, 4, np.float32),
        (np.arange(count) % 2).astype(np.int8), np.array(sorted(times), np.int64),
    )


def _windows(history: History) -> IntArray:
    return TIMELINE.window_of(history.timestamps_s)


def test_a_slate_ends_at_its_size_its_span_and_its_window() -> None:
    history = _history([0, 1, 1, 2, 9, 38, 41, 42, 99])
    config = SlateConfig(max_size=3, max_span_s=5)
    slates = list(explicit_slates(history, _windows(history), config))
    rows = [
        (slate.first, slate.window, slate.history_length, slate.timestamps_s.tolist())
        for slate in slates
    ]
    assert rows == [
        (0, 0, 0, [0, 1, 1]), (3, 0, 3, [2]), (4, 0, 4, [9]), (5, 0, 5, [38]),
        (6, 1, 6, [41, 42]), (8, 3, 8, [99]),
    ]
    assert slates[0].row_history_lengths.tolist() == [0, 1, 1]
    assert slates[0].labels.tolist() == [0, 1, 0]
    assert set(slates[0].kinds.tolist()) == {FeedbackKind.EXPLICIT}


@given(st.lists(st.integers(0, 100), max_size=60), st.integers(1, 6), st.integers(1, 30))
def test_no_example_sees_its_own_future_nor_its_slates(
    times: list[int], max_size: int, max_span_s: int
) -> None:
    history = _history(times)
    config = SlateConfig(max_size=max_size, max_span_s=max_span_s)
    covered = []
    for slate in explicit_slates(history, _windows(history), config):
        first_s = slate.timestamps_s[0]
        assert (history.timestamps_s[: slate.history_length] < first_s).all()
        assert (history.timestamps_s[slate.history_length :] >= first_s).all()     # and all of it
        for time_s, length in zip(slate.timestamps_s, slate.row_history_lengths, strict=True):
            assert (history.timestamps_s[:length] < time_s).all()
            assert (history.timestamps_s[length:] >= time_s).all()
        assert len(slate.items) <= max_size
        assert slate.timestamps_s[-1] - first_s <= max_span_s
        assert set(TIMELINE.window_of(slate.timestamps_s).tolist()) == {slate.window}
        covered.extend(slate.items.tolist())
    assert covered == history.items.tolist()


def test_rows_without_a_window_are_in_no_slate_and_in_the_histories_of_later_ones() -> None:
    windows = np.array([NO_WINDOW, 0, 0, NO_WINDOW, 0, 1, NO_WINDOW, NO_WINDOW])
    slates = list(explicit_slates(_history([*range(8)]), windows, SlateConfig()))
    rows = [(each.first, each.window, each.history_length, len(each.items)) for each in slates]
    assert rows == [(1, 0, 1, 2), (4, 0, 4, 1), (5, 1, 5, 1)]


def test_the_table_names_a_slate_by_user_and_position() -> None:
    history = _history([0, 1, 50])
    slates = explicit_slates(history, _windows(history), SlateConfig())
    table = slates_table([("u:1", slate) for slate in slates])
    assert table.schema.equals(SLATES)
    assert table["slate_id"].to_pylist() == ["u:1:0", "u:1:2"]
    assert table["items"].to_pylist() == [[1, 2], [3]]
    assert slates_table([]).equals(pa.Table.from_pylist([], SLATES))
