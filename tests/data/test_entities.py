from pathlib import Path

import pyarrow as pa

from engine.data.entities import (
    DUPLICATE_ID,
    NO_ID,
    extend_items,
    extend_users,
    items_without_file,
    read_items,
    users_of_interactions,
)
from engine.data.layouts import Entities, FieldSource
from engine.data.lines import BAD_COUNT
from engine.data.schema import items_schema, users_schema
from engine.data.sources import SourceFile
from engine.data.tables import TextTable
from engine.data.text import known_word, split_values


def test_bad_items_are_quarantined_with_line_and_reason(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text(
        "item_id,title,genres\n2,Two,Drama\n,None,Drama\n1,One\n2,Two again,Drama\n10,,\n"
    )
    table = TextTable(
        SourceFile(str(tmp_path / "items.csv")), ("item_id", "title", "genres"), ",", quoted=True
    )
    entities = Entities(
        table, "item_id", {"genres": FieldSource("genres", split_values("|"))},
        FieldSource("title", known_word),
    )
    items, refused = read_items(entities, ("genres",), 2)
    assert items.to_pylist() == [
        {"item": 1, "item_id": "10", "title": "10", "genres": []},
        {"item": 2, "item_id": "2", "title": "Two", "genres": ["Drama"]},
    ]
    assert [tuple(row.values()) for row in refused.to_pylist()] == [
        ("items.csv", 3, ",None,Drama", NO_ID), ("items.csv", 4, "1,One", BAD_COUNT),
        ("items.csv", 5, "2,Two again,Drama", DUPLICATE_ID),
    ]


def test_items_without_a_file_are_called_by_their_ids() -> None:
    items = items_without_file({"b", "a"}, ("genres",))
    assert items.to_pylist() == [
        {"item": 1, "item_id": "a", "title": "a", "genres": []},
        {"item": 2, "item_id": "b", "title": "b", "genres": []},
    ]


def test_a_user_field_of_the_interactions_is_split_and_others_stay_empty() -> None:
    rows = pa.table({"user_id": ["1", "2"], "user: land": ["France|Spain", None]})
    users = users_of_interactions(
        rows, {"land": FieldSource("land", split_values("|"))}, ("land", "age")
    )
    assert users.to_pylist() == [
        {"user_id": "1", "land": ["France", "Spain"], "age": []},
        {"user_id": "2", "land": [], "age": []},
    ]


def test_a_later_source_adds_items_behind_and_renames_in_place() -> None:
    schema = items_schema(("genres", "year"))

    def table(*rows: tuple[str, str, list[str], list[str]]) -> pa.Table:
        return pa.Table.from_pylist([
            {"item": place, **dict(zip(schema.names[1:], row, strict=True))}
            for place, row in enumerate(rows, start=1)
        ], schema=schema)

    known = table(("1", "One", ["Drama"], []), ("2", "Two", [], []), ("3", "3", [], []))
    named = table(
        ("0", "0", [], []), ("1", "1", [], []), ("10", "Ten", [], []), ("2", "2", [], ["1999"]),
        ("3", "Three", [], []),
    )
    extended = extend_items(known, named)
    assert extended == table(
        ("1", "One", ["Drama"], []), ("2", "2", [], ["1999"]), ("3", "Three", [], []),
        ("0", "0", [], []), ("10", "Ten", [], []),
    )
    assert extend_items(known, schema.empty_table()) == known
    assert extend_items(extended, known)["item_id"] == extended["item_id"]


def test_the_newer_profile_counts_unless_it_says_nothing() -> None:
    schema = users_schema(("job", "age"))

    def table(**rows: tuple[list[str], list[str]]) -> pa.Table:
        return pa.Table.from_pylist([
            {"user_id": user, "job": job, "age": age} for user, (job, age) in rows.items()
        ], schema=schema)

    known = table(b=(["cook"], ["18"]), d=(["nurse"], []))
    named = table(a=([], []), b=(["driver"], []), d=([], []))
    assert extend_users(known, named) == table(
        a=([], []), b=(["driver"], []), d=(["nurse"], []),
    )
    only_ids = users_schema(())
    one, two = (pa.table({"user_id": ids}, schema=only_ids) for ids in (["b", "c"], ["a", "b"]))
    assert extend_users(one, two)["user_id"].to_pylist() == ["a", "b", "c"]
