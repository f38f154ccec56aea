"""A stage's output is complete, named by what made it, and made once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.errors import ArtifactError, ChecksumError


class Writer:
    """Writes some files; counts its calls; may stop in the middle."""

    def __init__(self, files: Mapping[str, bytes], fail_after: int | None = None) -> None:
        self.files = files
        self.fail_after = fail_after
        self.calls = 0

    def __call__(self, folder: str) -> dict[str, Any]:
        self.calls += 1
        for position, (name, data) in enumerate(self.files.items()):
            if position == self.fail_after:
                raise KeyboardInterrupt
            storage.write_bytes(storage.join(folder, name), data)
        return {"rows": len(self.files)}


FILES = {"rows/part-00000": b"zero", "rows/part-00001": b"one", "items": b"items"}


def _make(
    run: str, writer: Writer, settings: Mapping[str, Any] | None = None, *inputs: Artifact
) -> Artifact:
    return artifacts.make(run, "histories", settings or {"size": 1}, inputs, writer)


def test_an_artifact_records_files_settings_and_facts(root: str) -> None:
    made = _make(root, Writer(FILES), {"size": 3})
    manifest = made.manifest()
    assert manifest["settings"] == {"size": 3}
    assert manifest["facts"] == dict(made.facts) == {"rows": 3}
    assert manifest["files"]["items"] == {"sha256": storage.sha256(b"items"), "size_bytes": 5}
    assert made.files("rows") == [
        made.path("rows/part-00000"), made.path("rows/part-00001"),
    ]
    made.verify()


def test_equal_settings_are_made_once(root: str) -> None:
    first, second = Writer(FILES), Writer(FILES)
    assert _make(root, first) == _make(root, second)
    assert (first.calls, second.calls) == (1, 0)


def test_a_changed_setting_makes_a_new_folder(root: str) -> None:
    one, two = _make(root, Writer(FILES), {"size": 1}), _make(root, Writer(FILES), {"size": 2})
    assert one.key != two.key
    assert storage.list_folders(root) == sorted([f"histories-{one.key}", f"histories-{two.key}"])


def test_the_key_depends_on_kind_settings_and_inputs_but_not_on_order_of_settings() -> None:
    first = Artifact("items", "aaa", "x", {})
    second = Artifact("items", "bbb", "x", {})
    base = artifacts.artifact_key("k", {"a": 1, "b": 2}, [first])
    assert artifacts.artifact_key("k", {"b": 2, "a": 1}, [first]) == base
    others = [
        artifacts.artifact_key("other", {"a": 1, "b": 2}, [first]),
        artifacts.artifact_key("k", {"a": 1, "b": 3}, [first]),
        artifacts.artifact_key("k", {"a": 1, "b": 2}, [second]),
        artifacts.artifact_key("k", {"a": 1, "b": 2}, [first, second]),
        artifacts.artifact_key("k", {"a": 1, "b": 2}, [first], version=2),
    ]
    assert len({base, *others}) == 6


def test_the_same_input_at_another_place_gives_the_same_key() -> None:
    here, there = Artifact("items", "aaa", "here", {}), Artifact("items", "aaa", "there", {})
    assert artifacts.artifact_key("k", {}, [here]) == artifacts.artifact_key("k", {}, [there])


def test_an_interrupted_write_is_invisible_and_done_again(root: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        _make(root, Writer(FILES, fail_after=2))
    (folder,) = storage.list_folders(root)
    with pytest.raises(ArtifactError, match="has not finished"):
        artifacts.open_artifact(storage.join(root, folder))
    again = Writer(FILES)
    _make(root, again).verify()
    assert again.calls == 1


def test_of_two_drivers_the_one_that_began_last_finishes(root: str) -> None:
    """The second deletes what the first wrote: the first must not call the rest complete."""
    class Overtaken(Writer):
        def __call__(self, folder: str) -> dict[str, int]:
            facts = super().__call__(folder)
            _make(root, Writer(FILES))
            return facts

    with pytest.raises(ArtifactError, match="another run"):
        _make(root, Overtaken({"early": b"x", **FILES}))
    made = _make(root, Writer(FILES))
    made.verify()
    assert sorted(made.manifest()["files"]) == sorted(FILES)
    assert storage.list_folders(root) == [made.uri.rpartition("/")[2]]


def test_a_driver_that_is_overtaken_while_it_hashes_does_not_call_the_rest_complete(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(uri: str) -> dict[str, dict[str, Any]]:
        monkeypatch.undo()
        with artifacts.claimed(uri):            # the second has only begun: the folder is empty
            storage.delete_folder(uri)
        return artifacts.describe_files(uri)

    monkeypatch.setattr(artifacts, "describe_files", overtaken)
    with pytest.raises(ArtifactError, match="another run"):
        _make(root, Writer(FILES))
    made = _make(root, Writer(FILES))
    assert sorted(made.manifest()["files"]) == sorted(FILES)


def test_what_an_interrupted_attempt_left_is_not_part_of_the_result(root: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        _make(root, Writer({"stray": b"x", **FILES}, fail_after=3))
    made = _make(root, Writer(FILES))
    assert sorted(made.manifest()["files"]) == sorted(FILES)
    assert not storage.exists(made.path("stray"))


def test_what_is_deleted_is_made_anew(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _make(root, Writer(FILES))

    def killed(uri: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            artifacts.delete(made.uri)
    with pytest.raises(ArtifactError, match="no manifest"):
        artifacts.open_artifact(made.uri)
    artifacts.delete(made.uri)
    assert not storage.exists(made.uri)
    _make(root, Writer(FILES)).verify()


def test_a_result_resumed_equals_one_that_was_never_interrupted(root: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        _make(storage.join(root, "a"), Writer(FILES, fail_after=1))
    resumed = _make(storage.join(root, "a"), Writer(FILES))
    straight = _make(storage.join(root, "b"), Writer(FILES))
    assert resumed.key == straight.key
    assert resumed.manifest()["files"] == straight.manifest()["files"]


def test_a_flipped_byte_is_found(root: str) -> None:
    made = _make(root, Writer(FILES))
    storage.write_bytes(made.path("rows/part-00001"), b"onE")
    with pytest.raises(ChecksumError, match="part-00001"):
        made.verify()


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    made = _make(str(tmp_path), Writer(FILES))
    Path(made.path("items")).unlink()
    with pytest.raises(ChecksumError, match="items is missing"):
        made.verify()


def test_facts_that_are_not_json_leave_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.make(str(tmp_path), "k", {}, [], lambda _: {"auc": float("nan")})
    assert storage.list_files(str(tmp_path)) == []
