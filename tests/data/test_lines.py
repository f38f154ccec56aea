import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.lines import (
    BAD_COUNT,
    BAD_QUOTE,
    decode_lines,
    read_lines,
    split_cells,
)

CELLS = st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])),
                 min_size=3, max_size=3)


def _split(lines: list[str], delimiter: str, count: int) -> list[tuple[object, ...]]:
    import pyarrow as pa

    columns, faults = split_cells(pa.array(lines, pa.string()), delimiter, count, quoted=True)
    return list(zip(*(column.to_pylist() for column in columns), faults.to_pylist(), strict=True))


@given(st.lists(CELLS, min_size=1, max_size=8))
def test_cells_are_those_of_the_csv_module(rows: list[list[str]]) -> None:
    lines = []
    for row in rows:
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(row)
        lines.append(text.getvalue())
    assert _split(lines, ",", 3) == [(*row, None) for row in rows]


def test_a_line_with_a_fault_leaves_its_neighbours_whole() -> None:
    lines = ["1,2", "1,2,3", '1,"2', "a,b", '"a,b",c', ""]
    assert _split(lines, ",", 2) == [
        ("1", "2", None), (None, None, BAD_COUNT), (None, None, BAD_QUOTE), ("a", "b", None),
        ("a,b", "c", None), (None, None, BAD_COUNT),
    ]


@given(st.integers(1, 7), st.integers(0, 2))
def test_numbers_of_lines_do_not_depend_on_the_chunk(chunk_rows: int, skip: int) -> None:
    lines = [b"%d\n" % number for number in range(1, 11)]
    found = {}
    for first, chunk in read_lines(io.BytesIO(b"".join(lines)), chunk_rows, skip=skip):
        assert len(chunk) <= chunk_rows
        found.update({first + place: line for place, line in enumerate(chunk)})
    assert found == {number: b"%d\n" % number for number in range(1 + skip, 11)}


@pytest.mark.parametrize(("latin_1", "text", "bad"), [
    (True, "Caf\xe9", False), (False, "Caf\ufffd", True),
])
def test_only_the_bad_line_is_not_utf_8(latin_1: bool, text: str, bad: bool) -> None:
    lines, faults = decode_lines(
        ["Caf\xe9\r\n".encode("latin-1"), "Caf\xe9\n".encode()], latin_1=latin_1
    )
    assert lines.to_pylist() == [text, "Caf\xe9"]
    assert faults.to_pylist() == [bad, False]


def test_a_byte_order_mark_is_not_part_of_the_first_cell() -> None:
    assert next(read_lines(io.BytesIO(b"\xef\xbb\xbfuser_id\n"), 5)) == (1, [b"user_id\n"])
