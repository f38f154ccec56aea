"""The same cases on a local folder and on an S3 server."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import storage


def test_bytes_come_back(root: str) -> None:
    uri = storage.join(root, "a", "b c=d.bin")
    storage.write_bytes(uri, b"\x00one")
    storage.write_bytes(uri, b"two")
    assert storage.read_bytes(uri) == b"two"


def test_exists_knows_files_and_folders(root: str) -> None:
    assert not storage.exists(storage.join(root, "a"))
    storage.write_bytes(storage.join(root, "a", "b"), b"x")
    assert storage.exists(storage.join(root, "a"))
    assert storage.exists(storage.join(root, "a", "b"))
    assert not storage.exists(storage.join(root, "a", "c"))


def test_listing_is_sorted_relative_and_deep(root: str) -> None:
    for name in ("z", "sub/b", "sub/a", "sub/deep/c"):
        storage.write_bytes(storage.join(root, "here", name), b"x")
    storage.write_bytes(storage.join(root, "elsewhere"), b"x")
    assert storage.list_files(storage.join(root, "here")) == ["sub/a", "sub/b", "sub/deep/c", "z"]
    assert storage.list_folders(storage.join(root, "here")) == ["sub"]


def test_an_absent_folder_lists_nothing(root: str) -> None:
    assert storage.list_files(storage.join(root, "absent")) == []
    assert storage.list_folders(storage.join(root, "absent")) == []


def test_drafts_are_not_listed(root: str) -> None:
    storage.write_bytes(storage.join(root, "sub", ".draft"), b"x")
    storage.write_bytes(storage.join(root, "sub", "file"), b"x")
    assert storage.list_files(root) == ["sub/file"]


def test_a_deleted_folder_is_gone_with_its_drafts_and_nothing_else(root: str) -> None:
    for name in ("gone/a", "gone/sub/.draft", "gone-not/b"):
        storage.write_bytes(storage.join(root, name), b"x")
    storage.delete_folder(storage.join(root, "gone"))
    storage.delete_folder(storage.join(root, "absent"))
    assert not storage.exists(storage.join(root, "gone"))
    assert storage.list_files(root) == ["gone-not/b"]


def test_a_deleted_file_is_gone_and_an_absent_one_is_fine(root: str) -> None:
    for name in ("a/one", "a/two"):
        storage.write_bytes(storage.join(root, name), b"x")
    for name in ("a/one", "a/one", "absent/three"):
        storage.delete_file(storage.join(root, name))
    assert storage.list_files(root) == ["a/two"]


def test_folders_are_described_by_size_and_newest_file(root: str) -> None:
    before_s = time.time()
    for name, data in (("a/one", b"12"), ("a/deep/.draft", b"345"), ("b/c", b""), ("file", b"6")):
        storage.write_bytes(storage.join(root, name), data)
    found = storage.describe_folders(root)
    assert {name: each.size_bytes for name, each in found.items()} == {"a": 5, "b": 0}
    for each in found.values():
        assert before_s - 2 <= each.changed_s <= time.time() + 2
    assert storage.describe_folders(storage.join(root, "absent")) == {}


def test_a_folder_without_files_has_never_changed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert storage.describe_folders(str(tmp_path)) == {"empty": storage.Contents(0, 0.0)}


def test_a_file_is_described_by_its_digest_and_size(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "CHUNK_BYTES", 7)
    data = bytes(range(256))
    storage.write_bytes(storage.join(root, "f.gz"), data)
    described = storage.describe_file(storage.join(root, "f.gz"))
    assert described == (hashlib.sha256(data).hexdigest(), 256)


def test_a_copy_has_the_same_bytes(root: str, tmp_path: Path) -> None:
    source = str(tmp_path / "source")
    storage.write_bytes(source, b"content")
    storage.copy_file(source, storage.join(root, "copies", "copy"))
    storage.copy_file(storage.join(root, "copies", "copy"), storage.join(root, "again"))
    assert storage.read_bytes(storage.join(root, "again")) == b"content"


def test_a_missing_file_raises_and_names_itself(root: str) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        storage.read_bytes(storage.join(root, "nowhere.json"))


def test_json_has_one_form(root: str) -> None:
    uri = storage.join(root, "v.json")
    storage.write_json(uri, {"b": [1, None], "a": 0.5})
    assert storage.read_json(uri) == {"a": 0.5, "b": [1, None]}
    assert storage.dump_json({"a": 1, "b": 2}) == storage.dump_json({"b": 2, "a": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, float("-inf")]])
def test_json_refuses_what_json_has_not(value: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.dump_json(value)


def test_tables_come_back_with_schema_and_chosen_columns(root: str) -> None:
    table = pa.table({
        "user_id": pa.array(["a", "b"]),
        "items": pa.array([[1, 2], []], pa.list_(pa.int32())),
    })
    uri = storage.join(root, "day=7", "part-00000.parquet")      # no partition column from the name
    storage.write_table(uri, table)
    assert storage.read_table(uri).equals(table)
    assert storage.read_table(uri, ["items"]).schema == table.select(["items"]).schema


def test_rows_are_found_by_value_wherever_their_group_is(root: str) -> None:
    users = [f"u{number:02d}" for number in range(20)]
    table = pa.table({"user_id": users, "age": range(20)})
    uri = storage.join(root, "users.parquet")
    storage.write_table(uri, table, group_rows=3)
    assert storage.read_table(uri).equals(table)
    wanted = pa.array(["u19", "u04", "nobody"])
    assert storage.read_rows(uri, "user_id", wanted).to_pydict() == {
        "user_id": ["u04", "u19"], "age": [4, 19],
    }
    assert storage.read_rows(uri, "user_id", wanted, ["age"]).to_pydict() == {"age": [4, 19]}
    assert storage.read_rows(uri, "user_id", wanted[:0]).schema == table.schema


def test_tensors_come_back_with_shape_and_type(root: str) -> None:
    tensors = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3).T,      # not contiguous
        "a": np.array([3], np.int64), "none": np.zeros((0, 4), np.float16),
    }
    storage.write_tensors(storage.join(root, "t.safetensors"), tensors)
    found = storage.read_tensors(storage.join(root, "t.safetensors"))
    assert sorted(found) == sorted(tensors)
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@given(
    rows=st.lists(st.tuples(st.text(max_size=5), st.lists(st.integers(0, 9), max_size=4))),
    cut=st.integers(0, 20),
)
@settings(max_examples=30)
def test_equal_tables_give_equal_bytes(
    rows: list[tuple[str, list[int]]], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    table = pa.table({
        "user_id": pa.array([user for user, _ in rows], pa.string()),
        "items": pa.array([items for _, items in rows], pa.list_(pa.int32())),
    })
    pieces = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    storage.write_table(str(folder / "whole"), table)
    storage.write_table(str(folder / "pieces"), pieces.replace_schema_metadata({"note": "x"}))
    assert (folder / "whole").read_bytes() == (folder / "pieces").read_bytes()


def test_a_killed_writer_leaves_the_old_file_whole(tmp_path: Path) -> None:
    target = tmp_path / "live.json"
    storage.write_bytes(str(target), b"old")
    script = (
        "import os, signal; from engine import storage\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"storage.write_bytes({str(target)!r}, b'new')"
    )
    ended = subprocess.run([sys.executable, "-c", script], check=False)
    assert ended.returncode == -9
    assert target.read_bytes() == b"old"
    assert storage.list_files(str(tmp_path)) == ["live.json"]


def test_a_failed_write_leaves_no_draft(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        storage.write_bytes(str(tmp_path / "taken"), b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_readers_see_one_whole_version_while_writers_race(root: str) -> None:
    uri = storage.join(root, "live.json")
    versions = [{"n": n, "filling": str(n) * 4000} for n in range(4)]
    storage.write_json(uri, versions[0])
    writers = [
        threading.Thread(target=lambda v=v: [storage.write_json(uri, v) for _ in range(5)])
        for v in versions
    ]
    for writer in writers:
        writer.start()
    seen = []
    while any(writer.is_alive() for writer in writers):
        seen.append(storage.read_json(uri))
    for writer in writers:
        writer.join()
    assert all(value in versions for value in [*seen, storage.read_json(uri)])


def test_uris_are_joined_and_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.join("s3://bucket/", "/a/", "b") == "s3://bucket/a/b"
    assert storage.absolute("s3://bucket/a") == "s3://bucket/a"
    assert storage.absolute("runs/x") == str(tmp_path.resolve() / "runs/x")
    assert storage.absolute("file:///tmp/x") == str(Path("/tmp/x").resolve())
    assert storage.is_remote("s3://bucket")
    assert not storage.is_remote("file:///x")


def test_a_scheme_nobody_knows_is_refused() -> None:
    with pytest.raises(pa.ArrowInvalid, match="nonsense"):
        storage.filesystem("nonsense://bucket/a")


def test_the_endpoint_of_the_environment_is_used(
    s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")      # S3's own one wins
    storage.write_json(storage.join(s3_root, "x.json"), 1)
    fs, path = storage.filesystem(storage.join(s3_root, "x.json"))
    assert isinstance(fs, pafs.S3FileSystem)
    with fs.open_input_file(path) as stream:
        assert json.loads(stream.read()) == 1
