import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.histories import build_histories, events_of, fresh_events
from engine.data.schema import HISTORIES, INTERACTIONS, histories_of
from engine.errors import DataError

ITEMS = pa.array(["10", "2", "3"])      # sorted as text: item 1, 2, 3

EVENTS = st.lists(
    st.tuples(st.sampled_from(["1", "10", "2"]), st.sampled_from(ITEMS.to_pylist()),
              st.integers(0, 5)), unique=True, max_size=30,
)


def _interactions(events: list[tuple[str, str, int]]) -> pa.Table:
    rows = [
        {"user_id": user, "item_id": item, "timestamp_s": time_s, "rating": 1 + time_s % 5,
         "label": time_s % 2} for user, item, time_s in events
    ]
    return pa.Table.from_pylist(rows, schema=INTERACTIONS)


def test_events_are_ordered_by_time_then_item() -> None:
    table = build_histories(
        _interactions([("b", "3", 5), ("b", "2", 5), ("a", "2", 9), ("b", "10", 7)]), ITEMS
    )
    assert table.to_pylist() == [
        {"user_id": "a", "items": [2], "ratings": [5.0], "labels": [1], "timestamps_s": [9]},
        {"user_id": "b", "items": [2, 3, 1], "ratings": [1.0, 1.0, 3.0], "labels": [1, 1, 1],
         "timestamps_s": [5, 5, 7]},
    ]


@given(EVENTS, st.randoms())
def test_the_order_of_the_rows_does_not_count(
    events: list[tuple[str, str, int]], random: object
) -> None:
    table = build_histories(_interactions(events), ITEMS)
    shuffled = list(events)
    random.shuffle(shuffled)        # type: ignore[attr-defined]
    assert build_histories(_interactions(shuffled), ITEMS).equals(table)
    assert table.schema.equals(HISTORIES)


@given(EVENTS)
def test_histories_hold_every_event_of_a_user_once(events: list[tuple[str, str, int]]) -> None:
    histories = histories_of(build_histories(_interactions(events), ITEMS))
    assert list(histories) == sorted({user for user, _, _ in events})
    for user, history in histories.items():
        own = sorted(
            (time_s, ITEMS.to_pylist().index(item) + 1) for u, item, time_s in events if u == user
        )
        assert list(zip(history.timestamps_s, history.items, strict=True)) == own
        assert history.ratings.tolist() == [1 + time_s % 5 for time_s, _ in own]


def test_a_user_with_tens_of_thousands_of_events_is_one_row() -> None:
    count = 50_000
    rows = pa.table({
        "user_id": ["x"] * count + ["y"], "item_id": ["2", "3"] * (count // 2) + ["10"],
        "timestamp_s": np.append(np.arange(count)[::-1], 5),
        "rating": np.ones(count + 1, np.float32), "label": np.ones(count + 1, np.int8),
    }, schema=INTERACTIONS)
    histories = histories_of(build_histories(rows, ITEMS))
    assert {user: len(history) for user, history in histories.items()} == {"x": count, "y": 1}
    assert (np.diff(histories["x"].timestamps_s) == 1).all()
    assert histories["x"].items[:2].tolist() == [3, 2]


def test_an_item_outside_the_catalogue_is_an_error() -> None:
    with pytest.raises(DataError, match=r"1 events of items not in the catalogue: \['4'\]"):
        build_histories(_interactions([("a", "4", 1)]), ITEMS)


def test_no_rows_give_no_histories() -> None:
    assert histories_of(build_histories(INTERACTIONS.empty_table(), ITEMS)) == {}


def test_a_slice_of_a_table_gives_the_histories_of_its_rows() -> None:
    table = build_histories(_interactions([("a", "2", 1), ("b", "3", 2), ("b", "2", 3)]), ITEMS)
    assert histories_of(table.slice(1))["b"].items.tolist() == [3, 2]


@given(EVENTS)
def test_the_events_of_histories_are_those_they_were_built_from(
    events: list[tuple[str, str, int]]
) -> None:
    histories = build_histories(_interactions(events), ITEMS)
    table = events_of(histories, ITEMS)
    assert table.schema == INTERACTIONS
    assert build_histories(table, ITEMS).equals(histories)
    assert events_of(histories.slice(1), ITEMS) == table.filter(
        pc.is_in(table["user_id"], histories["user_id"][1:].combine_chunks())
    )


@given(EVENTS, EVENTS)
def test_fresh_events_are_those_that_nobody_knows(
    known: list[tuple[str, str, int]], events: list[tuple[str, str, int]]
) -> None:
    fresh = fresh_events(_interactions(events * 2), _interactions(known))
    rows = fresh.select(["user_id", "item_id", "timestamp_s"]).to_pylist()
    assert sorted(tuple(row.values()) for row in rows) == sorted({*events} - {*known})
