"""Releases are whole, immutable and verified; one of them is live. On a folder and on S3."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine import storage
from engine.errors import (
    ArtifactError,
    ChecksumError,
    ReleaseError,
    ReleaseFormatError,
    ReleaseNotFoundError,
)
from engine.releases.experiment import Experiment
from engine.releases.registry import Live, Registry

FACTS: dict[str, Any] = {
    "inputs": {"crm": "c0ffee"}, "config": {"run": {"seed": 17}},
    "base_model": {"name": "tiny", "files": {"tokenizer.json": "ab"}},
    "data_window": {"start_s": 0, "end_s": 9}, "crm_key": "c0ffee", "mixing": "sum_of_products",
    "gate": "user", "scope": "slate", "metrics": {"test/auc": 0.75},
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Return the files of a small release: name -> where a stage wrote it."""
    folder = str(tmp_path / "stages")
    uris = {name: storage.join(folder, name.replace("/", "-")) for name in (
        "bank/bank.safetensors", "catalogue.parquet", "fusion.json",
    )}
    weights = np.ones((2, 3), np.float32)
    storage.write_tensors(uris["bank/bank.safetensors"], {"a": weights})
    storage.write_table(uris["catalogue.parquet"], pa.table({"item_id": ["", "x"]}))
    storage.write_json(uris["fusion.json"], {"bias": 0.5})
    return uris


@pytest.fixture
def registry(root: str) -> Registry:
    return Registry(storage.join(root, "releases"))


def _without_manifest(registry: Registry, release_id: str, files: dict[str, str]) -> None:
    """Leave what a publish leaves that is killed before the manifest."""
    for name, uri in files.items():
        storage.copy_file(uri, storage.join(registry.folder(release_id), name))


def test_a_release_holds_its_files_config_and_facts(
    registry: Registry, files: dict[str, str]
) -> None:
    folder = registry.publish("first", files, FACTS)
    assert folder == registry.folder("first")
    assert storage.list_files(folder) == sorted([*files, "config.json", "manifest.json"])
    assert storage.read_json(storage.join(folder, "config.json")) == FACTS["config"]
    for name, uri in files.items():
        assert storage.read_bytes(storage.join(folder, name)) == storage.read_bytes(uri)
    manifest = registry.verify("first")
    assert sorted(manifest.files) == sorted([*files, "config.json"])
    assert manifest.facts.base_model.files == {"tokenizer.json": "ab"}
    assert manifest.facts.metrics == {"test/auc": 0.75}


def test_a_release_that_names_a_setting_that_is_gone_is_read(
    registry: Registry, files: dict[str, str]
) -> None:
    config = {"base_model": {"attention": "sdpa", "dtype": "float32"}}
    registry.publish("older", files, {**FACTS, "config": config})
    assert registry.read_config("older").base_model.dtype == "float32"


def test_a_config_of_another_version_is_refused_by_name(
    registry: Registry, files: dict[str, str]
) -> None:
    registry.publish("r1", files, FACTS)
    assert registry.read_config("r1").run.seed == 17
    registry.publish("later", files, {**FACTS, "config": {"run": {"moon": 1}}})
    with pytest.raises(ReleaseFormatError, match=r"later/config\.json is not of this version"):
        registry.read_config("later")


def test_releases_are_listed_in_order_without_what_is_not_one(
    registry: Registry, files: dict[str, str]
) -> None:
    assert registry.list() == []
    for release_id in ("b", "a"):
        registry.publish(release_id, files, FACTS)
    registry.promote("a")
    storage.write_bytes(storage.join(registry.root, "notes", "x.json"), b"1")
    assert registry.list() == ["a", "b"]


def test_interrupted_release_is_invisible(registry: Registry, files: dict[str, str]) -> None:
    _without_manifest(registry, "half", files)
    assert registry.list() == []
    for ask in (registry.verify, registry.promote, registry.read_manifest):
        with pytest.raises(ReleaseNotFoundError, match="'half' is not in"):
            ask("half")


def test_publish_stops_before_the_manifest_if_a_source_is_missing(
    registry: Registry, files: dict[str, str]
) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        registry.publish("half", {**files, "z.json": files["fusion.json"] + ".absent"}, FACTS)
    assert registry.list() == []
    registry.publish("half", files, FACTS)      # a second attempt completes it
    registry.verify("half")


def test_files_left_by_another_attempt_are_never_part_of_a_release(
    registry: Registry, files: dict[str, str]
) -> None:
    _without_manifest(registry, "half", {"stray.json": files["fusion.json"]})
    with pytest.raises(ReleaseError, match=r"stray\.json"):
        registry.publish("half", files, FACTS)


def test_a_release_never_changes(registry: Registry, files: dict[str, str]) -> None:
    registry.publish("first", files, FACTS)
    before = registry.verify("first")
    with pytest.raises(ReleaseError, match=r"'first' is in .* never changes"):
        registry.publish("first", {"fusion.json": files["fusion.json"]}, FACTS)
    assert registry.verify("first") == before


@pytest.mark.parametrize("name", [
    "bank/bank.safetensors", "catalogue.parquet", "fusion.json", "config.json", "manifest.json",
])
def test_one_flipped_byte_anywhere_is_refused(
    registry: Registry, files: dict[str, str], name: str
) -> None:
    registry.publish("good", files, FACTS)
    registry.publish("bad", files, FACTS)
    registry.promote("good")
    uri = storage.join(registry.folder("bad"), name)
    data = bytearray(storage.read_bytes(uri))
    place = data.index(b"ab") if name == "manifest.json" else len(data) // 2
    data[place] ^= 1
    storage.write_bytes(uri, bytes(data))
    with pytest.raises(ChecksumError):
        registry.promote("bad")
    assert registry.live().release_id == "good"


def test_a_missing_file_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "releases"))
    folder = registry.publish("first", files, FACTS)
    Path(folder, "fusion.json").unlink()
    with pytest.raises(ArtifactError, match=r"fusion\.json is missing"):
        registry.verify("first")


def test_rollback_restores_the_previous_release(registry: Registry, files: dict[str, str]) -> None:
    for release_id in ("one", "two", "three"):
        registry.publish(release_id, files, FACTS)
    assert registry.promote("one") == Live("one", None)
    assert registry.promote("two") == Live("two", "one")
    assert registry.rollback() == registry.live() == Live("one", "two")
    assert registry.rollback() == Live("two", "one")
    assert registry.promote("three") == Live("three", "two")


def test_promoting_the_live_release_keeps_the_one_before_it(
    registry: Registry, files: dict[str, str]
) -> None:
    for release_id in ("one", "two"):
        registry.publish(release_id, files, FACTS)
        registry.promote(release_id)
    assert registry.promote("two") == Live("two", "one")


def test_nothing_is_live_before_the_first_promote(
    registry: Registry, files: dict[str, str]
) -> None:
    registry.publish("one", files, FACTS)
    with pytest.raises(ReleaseNotFoundError, match=r"no release is live .* found \['one'\]"):
        registry.live()
    registry.promote("one")
    with pytest.raises(ReleaseNotFoundError, match="nothing to roll back to"):
        registry.rollback()


def test_a_rollback_to_a_damaged_release_is_refused(
    registry: Registry, files: dict[str, str]
) -> None:
    for release_id in ("one", "two"):
        registry.publish(release_id, files, FACTS)
        registry.promote(release_id)
    storage.write_json(storage.join(registry.folder("one"), "fusion.json"), {"bias": 0.25})
    with pytest.raises(ChecksumError, match=r"fusion\.json"):
        registry.rollback()
    assert registry.live() == Live("two", "one")


def test_a_release_of_a_newer_format_is_refused_by_name(
    registry: Registry, files: dict[str, str]
) -> None:
    registry.publish("old", files, FACTS)
    folder = registry.publish("new", files, FACTS)
    uri = storage.join(folder, "manifest.json")
    storage.write_json(uri, {**storage.read_json(uri), "format_version": 7})
    assert registry.list() == ["new", "old"]
    with pytest.raises(ReleaseFormatError, match="format version 7; this engine reads 1"):
        registry.promote("new")
    registry.promote("old")


def test_a_manifest_of_another_release_is_refused(
    registry: Registry, files: dict[str, str]
) -> None:
    folder = registry.publish("one", files, FACTS)
    for name in storage.list_files(folder):
        storage.copy_file(
            storage.join(folder, name), storage.join(registry.folder("renamed"), name)
        )
    with pytest.raises(ReleaseFormatError, match="belongs to release 'one'"):
        registry.verify("renamed")


@pytest.mark.parametrize("name", [
    "bank.pkl", "bank.pt", "bank.bin", "model.py", "../x.json", "/x.json", "a//b.json", ".x.json",
    "manifest.json", "config.json", "a.json/../b.json", "", "x.json\n",
])
def test_other_files_and_places_are_refused(
    registry: Registry, files: dict[str, str], name: str
) -> None:
    with pytest.raises(ReleaseError, match="release file"):
        registry.publish("first", {name: files["fusion.json"]}, FACTS)
    assert registry.list() == []


@pytest.mark.parametrize("suffix", ["safetensors", "parquet", "json"])
def test_a_pickle_under_another_name_is_refused(
    registry: Registry, tmp_path: Path, suffix: str
) -> None:
    disguised = tmp_path / "weights"
    disguised.write_bytes(pickle.dumps({"weights": list(range(100))}))
    with pytest.raises(ReleaseError, match="does not hold what its name says"):
        registry.publish("first", {f"weights.{suffix}": str(disguised)}, FACTS)
    assert registry.list() == []


@pytest.mark.parametrize("release_id", ["", "..", "a/b", "a.b", "-a", "a b", "a" * 65, "a\n"])
def test_a_release_id_is_a_plain_word(
    registry: Registry, files: dict[str, str], release_id: str
) -> None:
    with pytest.raises(ReleaseNotFoundError, match="must be 1 to 64"):
        registry.publish(release_id, files, FACTS)
    with pytest.raises(ReleaseNotFoundError, match="must be 1 to 64"):
        registry.promote(release_id)


def test_facts_are_required_by_name(registry: Registry, files: dict[str, str]) -> None:
    for name in ("config", "base_model", "crm_key"):
        with pytest.raises(ReleaseError, match=name):
            registry.publish("x", files, {n: v for n, v in FACTS.items() if n != name})
    assert storage.list_files(registry.root) == []


def test_a_live_file_that_names_nothing_is_refused(registry: Registry) -> None:
    for data in (b"{}", b"[]", b"not json"):
        storage.write_bytes(storage.join(registry.root, "live.json"), data)
        with pytest.raises(ReleaseFormatError, match=r"live\.json"):
            registry.live()


TRIED = Experiment("two", 0.25, False, 1_000)


@pytest.fixture
def three(registry: Registry, files: dict[str, str]) -> Registry:
    """Three releases, the first one live."""
    for release_id in ("one", "two", "three"):
        registry.publish(release_id, files, FACTS)
    registry.promote("one")
    return registry


def test_an_experiment_stands_beside_the_live_release(three: Registry) -> None:
    assert three.start_experiment(TRIED) == three.live() == Live("one", None, TRIED)
    shadow = replace(TRIED, release_id="three", is_shadow=True)
    assert three.start_experiment(shadow) == Live("one", None, shadow)          # one at a time
    assert three.stop_experiment() == three.live() == Live("one", None)
    assert three.stop_experiment() == Live("one", None)


def test_an_experiment_goes_on_until_its_release_is_promoted(three: Registry) -> None:
    three.start_experiment(TRIED)
    assert three.promote("three") == Live("three", "one", TRIED)
    assert three.promote("three") == Live("three", "one", TRIED)
    assert three.rollback() == Live("one", "three", TRIED)
    assert three.promote("two") == three.live() == Live("two", "one")


def test_what_cannot_be_tried_out_changes_nothing(three: Registry) -> None:
    with pytest.raises(ReleaseError, match="'one' is live"):
        three.start_experiment(replace(TRIED, release_id="one"))
    with pytest.raises(ReleaseNotFoundError, match="'none'"):
        three.start_experiment(replace(TRIED, release_id="none"))
    storage.write_json(storage.join(three.folder("two"), "fusion.json"), {"bias": 0.25})
    with pytest.raises(ChecksumError):
        three.start_experiment(TRIED)
    assert three.live() == Live("one", None)


def test_live_files_of_before_and_of_later(three: Registry) -> None:
    uri = storage.join(three.root, "live.json")
    storage.write_json(uri, {"release_id": "two", "previous_id": "one"})
    assert three.live() == Live("two", "one")
    for wrong in ({"release_id": "three"}, {**TRIED.to_json(), "share": 7}, "three"):
        storage.write_json(uri, {"release_id": "two", "previous_id": "one", "experiment": wrong})
        with pytest.raises(ReleaseFormatError, match=r"live\.json is not of this version"):
            three.live()


def test_a_release_that_live_does_not_name_can_be_deleted(
    three: Registry, files: dict[str, str]
) -> None:
    three.promote("two")
    three.start_experiment(Experiment("three", 0.5, True, 1))
    for release_id in ("one", "two", "three"):          # previous, live, challenger
        assert not three.delete(release_id)
        three.verify(release_id)
    assert three.half_deleted() == ()
    three.stop_experiment()
    assert three.delete("three")
    assert three.list() == ["one", "two"]
    assert storage.list_folders(three.root) == ["one", "two"]
    three.publish("three", files, FACTS)
    three.verify("three")


@pytest.mark.parametrize("steps", range(7))
def test_a_deletion_that_is_killed_leaves_no_release_and_can_be_finished(
    three: Registry, files: dict[str, str], monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    done = []

    def limited(delete: Any) -> Any:
        def step(uri: str) -> None:
            if len(done) == steps:
                raise KeyboardInterrupt
            done.append(uri)
            delete(uri)
        return step

    with monkeypatch.context() as patch:
        for name in ("delete_file", "delete_folder"):
            patch.setattr(storage, name, limited(getattr(storage, name)))
        if steps < 6:
            with pytest.raises(KeyboardInterrupt):
                three.delete("two")
        else:
            assert three.delete("two")
    assert three.list() == ["one", "three"]
    assert three.half_deleted() == (("two",) if steps < 6 else ())
    with pytest.raises(ReleaseNotFoundError, match="'two' is not in"):
        three.promote("two")
    if steps % 2:
        three.publish("two", files, FACTS)              # a training that makes it anew
        three.verify("two")
    assert three.delete("two")
    assert three.half_deleted() == ()
    assert storage.list_folders(three.root) == ["one", "three"]


def test_of_a_deletion_and_a_promotion_at_once_one_sees_the_other(
    three: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_between(name: str, function: Any) -> None:
        """Have something happen just before a JSON file of a name is written."""
        write = storage.write_json

        def first(uri: str, value: Any) -> None:
            if uri.endswith(name):
                monkeypatch.undo()
                function()
            write(uri, value)

        monkeypatch.setattr(storage, "write_json", first)

    in_between("live.json", lambda: three.delete("two"))        # it was verified, then it went
    with pytest.raises(ReleaseError, match="'two' was deleted"):
        three.promote("two")
    assert three.live() == Live("one", None)
    in_between("deleted.json", lambda: three.promote("three"))
    assert not three.delete("three")
    assert three.live() == Live("three", "one")
    three.verify("three")


def test_a_promotion_while_files_are_deleted_is_taken_back(
    three: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = three.verify

    def marked_meanwhile(release_id: str) -> Any:
        manifest = verify(release_id)
        storage.write_json(storage.join(three.folder(release_id), "deleted.json"), {})
        return manifest

    monkeypatch.setattr(three, "verify", marked_meanwhile)
    with pytest.raises(ReleaseError, match="'two' was deleted"):
        three.promote("two")
    assert three.live() == Live("one", None)
