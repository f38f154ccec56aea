from collections.abc import Callable
from pathlib import Path

import pytest

from engine.config import ColumnsConfig, LabelConfig, SourceConfig
from engine.data.deletions import Deletions
from engine.data.entities import read_items, read_users
from engine.data.layouts import find_layout
from engine.errors import ConfigError, DataError
from tests.generated import (
    make_sample,
    write_movielens_csv,
    write_movielens_dat,
    write_online_retail,
    write_recbole,
    zip_folder,
)

Writer = Callable[..., str]


def _source(path: str, format: str = "recbole", **values: object) -> SourceConfig:
    return SourceConfig.model_validate({"path": path, "format": format, **values})


@pytest.mark.parametrize(("writer", "format", "title"), [
    (write_recbole, "recbole", "Title 7"),
    (write_movielens_dat, "movielens", "The Caf\xe9 Title 7"),
    (write_movielens_csv, "movielens", "The Title 7"),
])
@pytest.mark.parametrize("zipped", [False, True])
def test_every_layout_gives_the_same_items(
    tmp_path: Path, writer: Writer, format: str, title: str, zipped: bool
) -> None:
    path = writer(tmp_path / "small")
    path = zip_folder(path, "inner") if zipped else path
    layout = find_layout(_source(path, format))
    assert layout.items is not None
    items, refused = read_items(layout.items, ("genres", "year"), 7)
    _, _, year, genres = make_sample().items[6]
    assert items.filter(items["item_id"].to_numpy(zero_copy_only=False) == "7").to_pylist() == [
        {"item": 58, "item_id": "7", "title": title, "genres": list(genres), "year": [year]}
    ]
    assert items["item_id"].to_pylist() == sorted(items["item_id"].to_pylist())
    assert items["item"].to_pylist() == list(range(1, 61))
    assert len(refused) == 0


@pytest.mark.parametrize(("writer", "format", "age", "job"), [
    (write_recbole, "recbole", None, None),
    (write_movielens_dat, "movielens", "25-34", "academic/educator"),
])
def test_profiles_are_words(
    tmp_path: Path, writer: Writer, format: str, age: str | None, job: str | None
) -> None:
    _, own_age, _, own_job = make_sample().users[1]
    layout = find_layout(_source(writer(tmp_path), format))
    assert layout.users is not None
    users, _ = read_users(
        layout.users, ("gender", "age", "occupation"), 100, Deletions.of({})
    )
    row = next(row for row in users.to_pylist() if row["user_id"] == "2")
    ages = {"under 35": "25-34", "over": "56+"}
    expected_age = str(own_age) if age is None else ages["under 35" if own_age < 35 else "over"]
    assert row == {
        "user_id": "2", "gender": ["female"], "age": [expected_age], "occupation": [job or own_job],
    }


def test_generic_items_and_inline_user_fields_are_found(tmp_path: Path) -> None:
    layout = find_layout(_source(
        write_online_retail(tmp_path), "csv", label=LabelConfig(kind="implicit"), item_fields=(),
        user_fields=("country",),
    ))
    assert layout.users is None
    assert list(layout.user_fields) == ["country"]
    assert layout.items is not None
    items, _ = read_items(layout.items, (), 100)
    assert items["title"][0].as_py() == 'TITLE 1, "LARGE"'


def test_a_misspelt_inline_user_field_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"user_fields \['cuontry'\].*\['country'\]"):
        find_layout(_source(
            write_online_retail(tmp_path), "csv", label=LabelConfig(kind="implicit"),
            item_fields=(), user_fields=("country", "cuontry"),
        ))


def test_a_folder_of_parts_is_read_in_name_order(tmp_path: Path) -> None:
    parts = tmp_path / "interactions"
    parts.mkdir()
    for name in ("b.csv", "a.csv"):
        (parts / name).write_text("user_id,item_id,timestamp\n1,2,3\n")
    layout = find_layout(_source(
        str(tmp_path), "csv", label=LabelConfig(kind="implicit"), item_fields=(), user_fields=()
    ))
    assert [table.file.name for table in layout.interactions] == ["a.csv", "b.csv"]


@pytest.mark.parametrize("kind", ["threshold", "column"])
def test_a_label_that_has_no_column_is_refused(tmp_path: Path, kind: str) -> None:
    path = write_online_retail(tmp_path)
    with pytest.raises(ConfigError, match=f"{kind}' needs columns for"):
        find_layout(_source(path, "csv", label={"kind": kind}, item_fields=(), user_fields=()))


def test_a_column_that_the_file_lacks_is_named(tmp_path: Path) -> None:
    path = write_online_retail(tmp_path)
    with pytest.raises(DataError, match=r"lacks columns \['stars'\].*quantity"):
        find_layout(_source(
            path, "csv", columns=ColumnsConfig(rating="stars"), item_fields=(), user_fields=()
        ))


def test_a_field_that_the_source_lacks_is_named_with_those_it_has(tmp_path: Path) -> None:
    path = write_recbole(tmp_path)
    with pytest.raises(ConfigError, match=r"item_fields \['director'\].*genres"):
        find_layout(_source(path, item_fields=("director",)))


@pytest.mark.parametrize("format", ["recbole", "movielens", "csv", "parquet"])
def test_a_folder_without_the_layouts_files_is_refused(tmp_path: Path, format: str) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"has (no|neither)"):
        find_layout(_source(str(tmp_path), format))
