import zipfile
from pathlib import Path

import pytest

from engine.data.sources import SourceFile, find_file, list_source
from engine.errors import DataError
from tests.generated import write_movielens_dat, zip_folder


def test_a_zip_with_an_inner_folder_lists_the_same_files_as_the_folder(tmp_path: Path) -> None:
    folder = write_movielens_dat(tmp_path / "small")
    archive = zip_folder(folder, inner="ml-small")
    in_folder, in_zip = list_source(folder), list_source(archive)
    assert [file.name for file in in_zip] == [file.name for file in in_folder]
    assert [file.digest() for file in in_zip] == [file.digest() for file in in_folder]
    assert in_zip[0].member == "ml-small/movies.dat"


def test_hidden_files_and_those_of_macos_are_left_out(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("in/", "in/ratings.csv", "__MACOSX/in/ratings.csv", "in/.DS_Store"):
            archive.writestr(name, "x")
    assert [file.member for file in list_source(str(tmp_path / "a.zip"))] == ["in/ratings.csv"]


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere' does not exist"):
        list_source(str(tmp_path / "nowhere"))


def test_a_zip_that_is_none_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("<html>not found</html>")
    with pytest.raises(DataError, match=r"a\.zip' is not a zip"):
        list_source(str(tmp_path / "a.zip"))


def test_a_damaged_zip_member_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = Path(zip_folder(write_movielens_dat(tmp_path / "small")))
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"broken at movies\.dat"):
        list_source(str(path))[0].digest()


def test_two_files_of_one_name_are_refused() -> None:
    files = [SourceFile("/a/ratings.csv"), SourceFile("/a/old/ratings.csv")]
    with pytest.raises(DataError, match="2 times"):
        find_file(files, "ratings.csv")
