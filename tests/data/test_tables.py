from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from engine.data.sources import SourceFile
from engine.data.tables import (
    EMPTY_LINE,
    ParquetTable,
    TextTable,
    read_header,
    require_columns,
)
from engine.errors import DataError
from tests.generated import write_online_retail


@pytest.mark.parametrize("chunk_rows", [1, 7, 10_000])
def test_parquet_and_csv_of_the_same_rows_read_the_same(tmp_path: Path, chunk_rows: int) -> None:
    path = Path(write_online_retail(tmp_path, events=50)) / "interactions.csv"
    pq.write_table(pacsv.read_csv(path), tmp_path / "same.parquet")
    names = ("user_id", "item_id", "timestamp", "country")
    file = SourceFile(str(path))
    text = TextTable(file, read_header(file, ","), ",", quoted=True)
    parquet = ParquetTable(SourceFile(str(tmp_path / "same.parquet")), text.columns)
    of_text = pa.concat_tables(text.chunks(names, chunk_rows)).to_pydict()
    of_parquet = pa.concat_tables(parquet.chunks(names, chunk_rows)).to_pydict()
    assert {name: of_text[name] for name in names} == {name: of_parquet[name] for name in names}
    assert of_text["line"] == list(range(2, 2 + len(of_text["line"])))      # after the header
    assert of_parquet["line"] == list(range(1, 1 + len(of_text["line"])))


def test_parquet_times_lists_and_truth_become_text(tmp_path: Path) -> None:
    time = datetime(2020, 1, 1, 12, tzinfo=UTC)
    pq.write_table(pa.table({
        "time": pa.array([time], pa.timestamp("us", "Europe/Paris")),
        "day": pa.array([time.date()]),
        "genres": [["Action", "Drama"]],
        "label": [True],
        "kind": pa.array(["a"]).dictionary_encode(),
    }), tmp_path / "a.parquet")
    names = ("time", "day", "genres", "label", "kind")
    row = next(ParquetTable(SourceFile(str(tmp_path / "a.parquet")), names).chunks(names, 9))
    assert [row[name][0].as_py() for name in names] == [
        "1577880000", "1577836800", "Action|Drama", "1", "a",
    ]
    assert row["text"][0].as_py() == "1577880000,1577836800,Action|Drama,1,a"


def test_an_empty_line_is_a_fault_and_the_last_newline_is_not(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n\n3,4\n")
    table = TextTable(SourceFile(str(tmp_path / "a.csv")), ("a", "b"), ",")
    chunk = next(table.chunks(("b",), 9))
    assert chunk["fault"].to_pylist() == [None, EMPTY_LINE, None]
    assert chunk["b"].to_pylist() == ["2", None, "4"]
    assert chunk["line"].to_pylist() == [2, 3, 4]


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    table = TextTable(SourceFile("/x/a.csv"), ("user", "time"), ",")
    with pytest.raises(DataError, match=r"a\.csv lacks columns \['item'\].*\['user', 'time'\]"):
        require_columns(table, ["user", "item"])


def test_an_empty_file_has_no_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(DataError, match="no header"):
        read_header(SourceFile(str(tmp_path / "a.csv")), ",")
