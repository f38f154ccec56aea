from pathlib import Path

import pyarrow as pa
import pytest

from engine import storage
from engine.data.histories import build_histories
from engine.data.layers import (
    LAYERS_FILE,
    layer_names,
    lower_versions,
    overlay,
    read_histories,
    write_histories,
)
from engine.data.schema import HISTORIES, part_name
from tests.night_world import Event, table_of

ITEMS = pa.array(["1", "2", "3"])


def _histories(events: list[Event]) -> pa.Table:
    return build_histories(table_of(events), ITEMS)


@pytest.fixture
def newest(root: str) -> str:
    """Return the newest of three versions, locally and in a bucket."""
    versions = [storage.join(root, name) for name in ("histories-c", "histories-b", "histories-a")]
    for uri, events in zip(versions, (
        [("d", "1", 9)], [("b", "2", 4), ("b", "1", 5)],
        [("a", "1", 1), ("b", "2", 4), ("c", "3", 2), ("d", "2", 8)],
    ), strict=True):
        write_histories(uri, 0, _histories(events))
    storage.write_json(storage.join(versions[0], LAYERS_FILE), ["histories-b", "histories-a"])
    storage.write_json(storage.join(versions[1], LAYERS_FILE), ["histories-a"])
    return versions[0]


def test_a_reader_sees_the_newest_row_of_every_user(newest: str) -> None:
    events = [("a", "1", 1), ("b", "2", 4), ("b", "1", 5), ("c", "3", 2), ("d", "1", 9)]
    assert read_histories(newest, 0) == _histories(events)
    middle, base = lower_versions(newest)
    assert read_histories(middle, 0)["user_id"].to_pylist() == ["a", "b", "c", "d"]
    assert read_histories(middle, 0)["items"].to_pylist() == [[1], [2, 1], [3], [2]]
    assert layer_names(base) == []
    part = storage.join(base, part_name("histories", 0))
    assert read_histories(base, 0) == storage.read_table(part)


def test_a_reader_gets_the_users_and_columns_it_asks_for(newest: str) -> None:
    users = pa.array(["c", "nobody", "b"])
    assert read_histories(newest, 0, users, ["timestamps_s"]).to_pydict() == {
        "timestamps_s": [[4, 5], [2]],
    }
    assert read_histories(newest, 0, users[:0]) == HISTORIES.empty_table()
    assert read_histories(newest, 0, columns=["labels", "items"]).column_names == [
        "labels", "items",
    ]
    base = lower_versions(newest)[-1]
    assert read_histories(base, 0, users, ["items"]).to_pydict() == {"items": [[2], [3]]}


def test_nothing_upon_nothing_is_nothing() -> None:
    empty = HISTORIES.empty_table()
    assert overlay([empty, empty]) == empty


def test_few_users_are_read_in_groups_of_their_own(tmp_path: Path) -> None:
    uri = str(tmp_path / "histories-a")
    table = _histories([(f"u{number:04d}", "1", number) for number in range(2000)])
    write_histories(uri, 0, table)
    assert read_histories(uri, 0) == table
    users = pa.array(["u0003", "u1999"])
    assert read_histories(uri, 0, users)["timestamps_s"].to_pylist() == [[3], [1999]]
