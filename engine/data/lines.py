"""Delimited text -> chunks of cells with their 1-based line numbers; one line is one row.

A line that cannot be read stays in the chunk with a fault and empty cells.
"""

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BAD_ENCODING = "not UTF-8"
BAD_COUNT = "wrong number of columns"
BAD_QUOTE = "quote is not closed"
BOM = b"\xef\xbb\xbf"


def read_lines(
    stream: BinaryIO, chunk_rows: int, *, skip: int = 0
) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the number of the first line and up to `chunk_rows` lines, after `skip` lines."""
    first = skip + 1
    list(islice(stream, skip))
    while lines := list(islice(stream, chunk_rows)):
        if first == 1:
            lines[0] = lines[0].removeprefix(BOM)
        yield first, lines
        first += len(lines)


def decode_lines(lines: Sequence[bytes], *, latin_1: bool) -> tuple[pa.Array, pa.Array]:
    """Return the lines as text without their ends, and which of them are not UTF-8.

    With `latin_1` such a line is read as latin-1; otherwise its bad bytes show as U+FFFD.
    """
    try:
        text = pa.array(lines, pa.binary()).cast(pa.string())
        bad = np.zeros(len(lines), bool)
    except pa.ArrowInvalid:
        decoded = [_decode(line, latin_1=latin_1) for line in lines]
        text = pa.array([line for line, _ in decoded], pa.string())
        bad = np.array([fault for _, fault in decoded], bool)
    return pc.ascii_rtrim(text, "\r\n"), pa.array(bad)


def _decode(line: bytes, *, latin_1: bool) -> tuple[str, bool]:
    try:
        return line.decode(), False
    except UnicodeDecodeError:
        return (line.decode("latin-1"), False) if latin_1 else (line.decode(errors="replace"), True)


def split_cells(
    text: pa.Array, delimiter: str, num_columns: int, *, quoted: bool
) -> tuple[list[pa.Array], pa.Array]:
    """Return the columns of cells, and each line's fault (null where there is none)."""
    has_quote = pc.match_substring(text, '"') if quoted else pa.array(np.zeros(len(text), bool))
    has_quote = np.asarray(has_quote.to_numpy(zero_copy_only=False), bool)
    plain, special = np.flatnonzero(~has_quote), np.flatnonzero(has_quote)
    lists = pc.split_pattern(text.take(pa.array(plain)), delimiter)
    counts = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    rows: list[np.ndarray] = [plain[counts == num_columns]]
    flat = lists.filter(pa.array(counts == num_columns)).flatten()
    faults = np.full(len(text), None, object)
    faults[plain[counts != num_columns]] = BAD_COUNT
    parsed = []
    for row in special:
        cells, faults[row] = _parse_quoted(text[int(row)].as_py(), delimiter, num_columns)
        parsed.extend(cells)
        if cells:
            rows.append(np.array([row]))
    cells_flat = pa.concat_arrays([flat, pa.array(parsed, flat.type)])
    return _scatter(cells_flat, np.concatenate(rows), len(text), num_columns), pa.array(
        faults, pa.string()
    )


def _parse_quoted(line: str, delimiter: str, num_columns: int) -> tuple[list[str], str | None]:
    try:
        cells = next(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error:
        return [], BAD_QUOTE
    return (cells, None) if len(cells) == num_columns else ([], BAD_COUNT)


def _scatter(flat: pa.Array, rows: np.ndarray, length: int, num_columns: int) -> list[pa.Array]:
    """Return column arrays of `length` from row-major cells that stand for the lines `rows`."""
    place = np.full(length, -1)
    place[rows] = np.arange(len(rows)) * num_columns
    missing = place < 0
    return [
        flat.take(pa.array(place + column, pa.int64(), mask=missing))
        for column in range(num_columns)
    ]
