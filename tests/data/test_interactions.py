from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import SourceConfig
from engine.data import interactions as subject
from engine.data.interactions import Checker, check_quality, first_rows, split_partition
from engine.data.lines import BAD_COUNT, BAD_ENCODING
from engine.data.sources import SourceFile
from engine.data.tables import TextTable
from engine.errors import DataError, DataQualityError

ROLES = {"user": "u", "item": "i", "timestamp": "t", "rating": "r"}
COLUMNS = ("u", "i", "t", "r", "l")


def _checker(kind: str = "threshold", partitions: int = 1, **values: Any) -> Checker:
    roles = dict(ROLES)
    if kind == "column":
        roles = {**ROLES, "label": "l"}
        del roles["rating"]
    config = SourceConfig.model_validate({"label": {"kind": kind}, **values})
    return Checker(config, roles, partitions, pa.array(["7", "8"]))


def _check(checker: Checker, *rows: str) -> pa.Table:
    chunk = {name: [row.split(",")[place] for row in rows] for place, name in enumerate(COLUMNS)}
    return checker.check(pa.table({
        "line": np.arange(1, 1 + len(rows)), "text": list(rows),
        "fault": pa.nulls(len(rows), pa.string()), **chunk,
    }), "a.csv")


@pytest.mark.parametrize(("row", "reason"), [
    ("1,7,100,4,1", None),
    (" 1 , 7 , 100 , 4 ,1", None),
    ("1,7,1e2,+4.0,1", None),
    ("1,7,2020-01-01T00:00:00Z,4,1", None),
    (",7,100,4,1", subject.NO_USER),
    ("1, ,100,4,1", subject.NO_ITEM),
    ("1,9,100,4,1", subject.UNKNOWN_ITEM),
    ("1,7,,4,1", subject.BAD_TIME),
    ("1,7,yesterday,4,1", subject.BAD_TIME),
    ("1,7,nan,4,1", subject.BAD_TIME),
    ("1,7,1e999,4,1", subject.BAD_TIME),
    ("1,7,0x10,4,1", subject.BAD_TIME),
    ("1,7,-1,4,1", subject.TIME_RANGE),
    ("1,7,1600000000000,4,1", subject.TIME_RANGE),      # milliseconds
    ("1,7,100,,1", subject.BAD_RATING),
    ("1,7,100,good,1", subject.BAD_RATING),
    ("1,7,100,inf,1", subject.BAD_RATING),
    ("1,7,100,0.5,1", subject.RATING_RANGE),
    ("1,7,100,6,1", subject.RATING_RANGE),
    (",9,x,9,1", subject.NO_USER),                      # the first reason that applies
])
def test_a_bad_row_has_the_reason(row: str, reason: str | None) -> None:
    assert _check(_checker(), row)["reason"].to_pylist() == [reason]


@pytest.mark.parametrize(("label", "reason"), [
    ("0", None), ("1", None), ("1.0", None), ("2", subject.BAD_LABEL), ("", subject.BAD_LABEL),
    ("yes", subject.BAD_LABEL), ("0.5", subject.BAD_LABEL),
])
def test_a_label_is_0_or_1(label: str, reason: str | None) -> None:
    assert _check(_checker("column"), f"1,7,100,4,{label}")["reason"].to_pylist() == [reason]


@pytest.mark.parametrize(("kind", "labels", "ratings"), [
    ("threshold", [1, 1, 0], [4.0, 5.0, 3.5]), ("column", [0, 1, 1], [1.0, 1.0, 1.0]),
    ("implicit", [1, 1, 1], [1.0, 1.0, 1.0]),
])
def test_labels_follow_the_kind(kind: str, labels: list[int], ratings: list[float]) -> None:
    rows = _check(_checker(kind), "1,7,100,4,0", "1,7,101,5,1", "1,7,102,3.5,1")
    assert rows["label"].to_pylist() == labels
    assert rows["rating"].to_pylist() == ratings


def test_a_threshold_that_is_no_binary_fraction_includes_its_own_value() -> None:
    checker = _checker(label={"kind": "threshold", "threshold": 3.3})
    assert _check(checker, "1,7,100,3.3,0")["label"].to_pylist() == [1]


@pytest.mark.parametrize(("text", "seconds"), [
    ("1291191960", 1291191960), ("1291191960.9", 1291191960), ("8.8e8", 880_000_000),
    ("2010-12-01T08:26:00", 1291191960), ("2010-12-01 09:26:00+01:00", 1291191960),
    ("2010-12-01T08:26:00Z", 1291191960), ("2010-12-01", 1291161600),
])
def test_times_are_seconds_since_1970_in_utc(text: str, seconds: int) -> None:
    assert _check(_checker(), f"1,7,{text},4,1")["timestamp_s"].to_pylist() == [seconds]


@given(st.lists(st.one_of(
    st.floats().map(str), st.integers().map(str), st.text("0123456789.eE+-naif ", max_size=6)
), min_size=1, max_size=20))
def test_numbers_are_read_as_python_reads_them(cells: list[str]) -> None:
    values, is_number = subject._numbers(subject._trim(pa.array(cells, pa.string())))
    for cell, value, known in zip(cells, values, is_number, strict=True):
        try:
            expected = float(cell) if "_" not in cell else np.nan
        except ValueError:
            expected = np.nan
        assert known == bool(np.isfinite(expected))
        assert not known or value == expected


def test_a_row_that_the_reader_refused_keeps_its_line_and_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(
        b"u,i,t,r,l\n1,7,100,4,1\n1,7,100\n\xff1,7,100,4,1\n1,8,100,4,1\n"
    )
    table = TextTable(SourceFile(str(tmp_path / "a.csv")), COLUMNS, ",")
    rows = pa.concat_tables(_checker(chunk_rows=2).chunks(table))
    kept, refused = split_partition(rows)
    assert kept["item_id"].to_pylist() == ["7", "8"]
    assert [tuple(row.values()) for row in refused.to_pylist()] == [
        ("a.csv", 3, "1,7,100", BAD_COUNT), ("a.csv", 4, "\ufffd1,7,100,4,1", BAD_ENCODING),
    ]


def test_of_duplicates_the_first_of_the_source_stays() -> None:
    rows = _check(
        _checker(), "1,7,100,1,0", "1,8,100,2,0", "1,7,100,3,0", "2,7,100,4,0", "1,7,100,5,0"
    )
    kept, refused = split_partition(rows.take([4, 3, 2, 1, 0]))     # blocks come in any order
    assert kept.select(["user_id", "item_id", "rating"]).to_pylist() == [
        {"user_id": "1", "item_id": "7", "rating": 1.0},
        {"user_id": "1", "item_id": "8", "rating": 2.0},
        {"user_id": "2", "item_id": "7", "rating": 4.0},
    ]
    assert refused["line"].to_pylist() == [3, 5]
    assert refused["reason"].to_pylist() == [subject.DUPLICATE] * 2


ROWS = st.lists(st.tuples(
    st.sampled_from(["1", "2", "", "u\xe9"]), st.sampled_from(["7", "8", "9"]),
    st.sampled_from(["100", "101", "x"]), st.sampled_from(["1", "4", "9"]),
), min_size=1, max_size=30)


@given(ROWS, st.integers(1, 4), st.randoms())
def test_no_row_is_lost_whatever_the_blocks_and_partitions(
    rows: list[tuple[str, ...]], partitions: int, random: Any
) -> None:
    checked = _check(_checker(partitions=partitions), *(",".join((*row, "0")) for row in rows))
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = checked.take(order)
    kept, refused = [], []
    for number in range(partitions):
        mine = split_partition(checked.filter(checked["partition"].to_numpy() == number))
        same = split_partition(shuffled.filter(shuffled["partition"].to_numpy() == number))
        assert mine[0].equals(same[0])
        assert mine[1].equals(same[1])
        kept.extend(mine[0].to_pylist())
        refused.extend(mine[1].to_pylist())
    assert len(kept) + len(refused) == len(rows)
    keys = [(row["user_id"], row["item_id"], row["timestamp_s"]) for row in kept]
    expected = {
        (user, item, int(time)) for user, item, time, rating in rows
        if user and item != "9" and time != "x" and rating != "9"
    }
    assert sorted(keys) == sorted(expected)
    assert [row["line"] for row in refused] == sorted(
        {row["line"] for row in refused}, key=[row["line"] for row in refused].index
    )


def test_a_users_first_row_is_the_oldest() -> None:
    rows = _check(_checker(), "2,7,100,4,0", "1,8,200,4,0", "1,7,150,4,0")
    kept, _ = split_partition(rows)
    assert first_rows(kept)["timestamp_s"].to_pylist() == [150, 100]
    assert len(first_rows(kept.slice(0, 0))) == 0


def test_too_many_bad_rows_stop_the_import_with_counts_and_place() -> None:
    check_quality("events", 98, {"bad": 2}, 0.02, "q")
    with pytest.raises(DataQualityError, match=r"3 of 100 events .*\(2 a, 1 b\).*0\.02; see q"):
        check_quality("events", 97, {"a": 2, "b": 1}, 0.02, "q")
    with pytest.raises(DataError, match="no events"):
        check_quality("events", 0, {}, 1.0, "q")
