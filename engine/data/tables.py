"""A source file as chunks of text columns: `line`, `text`, `fault` and the columns asked for.

Both kinds of table yield the same, so nothing after this knows where the rows come from.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.data.lines import BAD_ENCODING, decode_lines, read_lines, split_cells
from engine.data.sources import SourceFile
from engine.errors import DataError

EMPTY_LINE = "empty line"


@dataclass(frozen=True, slots=True)
class TextTable:
    """Delimited text; `columns` are in the file's order."""

    file: SourceFile
    columns: tuple[str, ...]
    delimiter: str
    header_lines: int = 1
    quoted: bool = False
    latin_1: bool = False

    def chunks(self, names: Sequence[str], chunk_rows: int) -> Iterator[pa.Table]:
        """Yield up to `chunk_rows` rows at a time."""
        with self.file.open() as stream:
            for first, lines in read_lines(stream, chunk_rows, skip=self.header_lines):
                yield self._chunk(first, lines, names)

    def _chunk(self, first: int, lines: list[bytes], names: Sequence[str]) -> pa.Table:
        text, bad = decode_lines(lines, latin_1=self.latin_1)
        cells, fault = split_cells(text, self.delimiter, len(self.columns), quoted=self.quoted)
        fault = pc.if_else(pc.equal(text, ""), EMPTY_LINE, fault)
        fault = pc.if_else(bad, BAD_ENCODING, fault)
        line = np.arange(first, first + len(lines))
        wanted = {name: cells[self.columns.index(name)] for name in names}
        return pa.table({"line": line, "text": text, "fault": fault, **wanted})


@dataclass(frozen=True, slots=True)
class ParquetTable:
    """A Parquet file; a line is a row number from 1, the text is the row's values."""

    file: SourceFile
    columns: tuple[str, ...]

    def chunks(self, names: Sequence[str], chunk_rows: int) -> Iterator[pa.Table]:
        """Yield up to `chunk_rows` rows at a time."""
        first = 1
        with self.file.open() as stream:
            for batch in pq.ParquetFile(stream).iter_batches(chunk_rows, columns=list(names)):
                wanted = {name: _as_text(batch[name]) for name in names}
                known = [pc.fill_null(column, "") for column in wanted.values()]
                yield pa.table({
                    "line": np.arange(first, first + len(batch)),
                    "text": pc.binary_join_element_wise(*known, ","),
                    "fault": pa.nulls(len(batch), pa.string()), **wanted,
                })
                first += len(batch)


Table = TextTable | ParquetTable


def _as_text(column: pa.Array) -> pa.Array:
    """Return a column as text; a list's values are joined by `|`, a time is in seconds."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return pc.binary_join(column.cast(pa.list_(pa.string())), "|")
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    if pa.types.is_timestamp(column.type):
        column = pc.floor_temporal(column, unit="second").cast(pa.timestamp("s", column.type.tz))
        column = column.cast(pa.int64())
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    return column.cast(pa.string())


def read_header(file: SourceFile, delimiter: str) -> tuple[str, ...]:
    """Return the names in the first line of a text file."""
    with file.open() as stream:
        lines = next(read_lines(stream, 1), (1, [b""]))[1]
    text, bad = decode_lines(lines, latin_1=False)
    names = next(csv.reader([text[0].as_py()], delimiter=delimiter), [])
    if bad[0].as_py() or not names:
        raise DataError(f"{file.name} has no header that can be read: {text[0].as_py()!r:.200}")
    return tuple(name.strip() for name in names)


def require_columns(table: Table, names: Sequence[str]) -> None:
    """Raise DataError that names the columns a file lacks and those it has."""
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise DataError(f"{table.file.name} lacks columns {missing}; it has {list(table.columns)}")
