"""Releases in one folder or bucket, and which of them is live.

    <root>/<release_id>/...files, config.json
    <root>/<release_id>/manifest.json     written last: without it there is no release
    <root>/<release_id>/deleted.json      while it is deleted: there is no release any more
    <root>/live.json     {"release_id", "previous_id", "experiment"}, replaced in one step

A release never changes once its manifest is there; it may be deleted while `live.json` does not
name it. `live.json` is the only truth about what is live, and which challenger is tried out beside
it. Many may read at a time; one publishes an id, and one writes `live.json`.
"""

import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from pydantic import ValidationError

from engine import artifacts, storage
from engine.config import RETIRED, EngineConfig
from engine.errors import ChecksumError, ReleaseError, ReleaseFormatError, ReleaseNotFoundError
from engine.releases.experiment import Experiment
from engine.releases.manifest import (
    FORMAT_VERSION,
    FileEntry,
    ReleaseManifest,
    dump_manifest,
    faults_of,
    parse_facts,
    parse_manifest,
)

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
DELETED = "deleted.json"
CONFIG = "config.json"
LIVE = "live.json"

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
FILE_NAME = re.compile(r"([A-Za-z0-9_-]+/)*[A-Za-z0-9_-]+\.(safetensors|parquet|json)")


class Live(NamedTuple):
    """What is live, and what was before."""

    release_id: str
    previous_id: str | None
    experiment: Experiment | None = None

    def named(self) -> set[str]:
        """Return the releases that may answer, or be asked for, at any moment."""
        challenger = None if self.experiment is None else self.experiment.release_id
        return {each for each in (self.release_id, self.previous_id, challenger) if each}


class Registry:
    """The releases below one root: a local path or an object store's URI."""

    def __init__(self, root: str) -> None:
        self.root = storage.absolute(root)

    def folder(self, release_id: str) -> str:
        """Return the URI of a release's folder, be it there or not."""
        if not ID.fullmatch(release_id):
            raise ReleaseNotFoundError(
                f"release id {release_id!r} must be 1 to 64 letters, digits, '-' or '_'"
            )
        return storage.join(self.root, release_id)

    def list(self) -> list[str]:
        """Return the ids of the complete releases, sorted."""
        return [name for name in storage.list_folders(self.root) if self._is_complete(name)]

    def publish(self, release_id: str, files: Mapping[str, str], facts: Mapping[str, Any]) -> str:
        """Copy files (path in the release -> URI) into a new release; return its folder.

        `facts` are those of ReleaseFacts and `config`, which becomes config.json. What an
        interrupted attempt left under this id is written again. Raises ReleaseError if the id
        exists, a fact is missing, or a file is not safetensors, Parquet or JSON.
        """
        folder = self.folder(release_id)
        if self._is_complete(release_id):
            raise ReleaseError(f"release {release_id!r} is in {self.root} and never changes")
        described, config = _split_facts(facts)
        stated = parse_facts(described)
        for name in files:
            _check_name(name)
        if self._is_deleted(release_id):
            storage.delete_folder(folder)       # what an interrupted deletion left
        self._refuse_strays(folder, files)
        log.info("release %s: writing %d files to %s", release_id, len(files) + 1, folder)
        entries = {
            name: _store(storage.join(folder, name), storage.read_bytes(uri))
            for name, uri in sorted(files.items())
        }
        entries[CONFIG] = _store(storage.join(folder, CONFIG), storage.dump_json(config))
        manifest = ReleaseManifest(FORMAT_VERSION, release_id, int(time.time()), entries, stated)
        storage.write_json(storage.join(folder, MANIFEST), dump_manifest(manifest))
        log.info("release %s: complete", release_id)
        return folder

    def read_manifest(self, release_id: str) -> ReleaseManifest:
        """Return a release's manifest; files are not looked at.

        Raises ReleaseNotFoundError, ReleaseFormatError or ChecksumError.
        """
        uri = storage.join(self.folder(release_id), MANIFEST)
        if not self._is_complete(release_id):
            raise ReleaseNotFoundError(
                f"release {release_id!r} is not in {self.root}; found {self.list()}"
            )
        manifest = parse_manifest(_read_json(uri))
        if manifest.release_id != release_id:
            raise ReleaseFormatError(f"{uri} belongs to release {manifest.release_id!r}")
        return manifest

    def read_config(self, release_id: str) -> EngineConfig:
        """Return the configuration that a release was trained with; ReleaseFormatError if this
        version cannot read it.
        """
        uri = storage.join(self.folder(release_id), CONFIG)
        values = _read_json(uri)
        for section, name in RETIRED:
            values.get(section, {}).pop(name, None)
        try:
            return EngineConfig.model_validate(values)
        except ValidationError as error:
            raise ReleaseFormatError(
                f"{uri} is not of this version: {faults_of(error)}"
            ) from error

    def verify(self, release_id: str) -> ReleaseManifest:
        """Compare every file with its checksum; raises as `read_manifest` does."""
        manifest = self.read_manifest(release_id)
        files = {name: asdict(entry) for name, entry in manifest.files.items()}
        artifacts.verify_files(self.folder(release_id), files)
        return manifest

    def live(self) -> Live:
        """Return the live release and the one before it; ReleaseNotFoundError if none is live."""
        uri = storage.join(self.root, LIVE)
        if not storage.exists(uri):
            raise ReleaseNotFoundError(f"no release is live in {self.root}; found {self.list()}")
        values = _read_json(uri)
        if not isinstance(values, dict) or not isinstance(values.get("release_id"), str):
            raise ReleaseFormatError(f"{uri} names no release: {values!r:.200}")
        try:
            experiment = values.get("experiment")
            return Live(
                values["release_id"], values.get("previous_id"),
                None if experiment is None else Experiment.from_json(experiment),
            )
        except (TypeError, ReleaseError) as error:
            raise ReleaseFormatError(f"{uri} is not of this version: {error}") from error

    def promote(self, release_id: str) -> Live:
        """Verify a release and make it live; a release that is live already stays so.

        An experiment goes on beside the new release, unless that is its challenger.
        """
        self.verify(release_id)
        current = self._live()
        if current is None:
            return self._write(Live(release_id, None), None)
        if current.release_id == release_id:
            return current
        experiment = current.experiment
        if experiment is not None and experiment.release_id == release_id:
            experiment = None
        return self._write(Live(release_id, current.release_id, experiment), current)

    def rollback(self) -> Live:
        """Promote the release before the live one; a second rollback undoes the first."""
        current = self.live()
        if current.previous_id is None:
            raise ReleaseNotFoundError(
                f"release {current.release_id!r} is the first live one in {self.root}: "
                "nothing to roll back to"
            )
        return self.promote(current.previous_id)

    def start_experiment(self, experiment: Experiment) -> Live:
        """Verify a challenger and try it out beside the live release, in place of any other.

        Raises ReleaseError if it is the live one.
        """
        self.verify(experiment.release_id)
        current = self.live()
        if current.release_id == experiment.release_id:
            raise ReleaseError(f"release {current.release_id!r} is live: try out another one")
        return self._write(current._replace(experiment=experiment), current)

    def stop_experiment(self) -> Live:
        """Leave the live release alone again."""
        current = self.live()
        return self._write(current._replace(experiment=None), current)

    def delete(self, release_id: str) -> bool:
        """Delete a release, or what an interrupted deletion left of it; tell whether it is gone:
        one that `live.json` names stays.

        The mark is written before `live.json` is read, and whoever promotes looks for it after
        writing there: of the two, one sees the other.
        """
        folder = self.folder(release_id)
        mark = storage.join(folder, DELETED)
        storage.write_json(mark, {"release_id": release_id})
        if release_id in self.live().named():
            storage.delete_file(mark)
            return False
        storage.delete_file(storage.join(folder, MANIFEST))
        for name in storage.list_files(folder):
            if name != DELETED:
                storage.delete_file(storage.join(folder, name))
        storage.delete_folder(folder)
        log.info("release %s: deleted", release_id)
        return True

    def half_deleted(self) -> Sequence[str]:
        """Return the ids of the releases whose deletion was interrupted, sorted."""
        folders = storage.list_folders(self.root)
        return tuple(each for each in folders if ID.fullmatch(each) and self._is_deleted(each))

    def _write(self, live: Live, before: Live | None) -> Live:
        """Write `live.json`; what was there `before` comes back if a release went meanwhile."""
        self._store_live(live)
        if before is not None:
            for release_id in live.named() - before.named():
                if not self._is_complete(release_id):
                    self._store_live(before)
                    raise ReleaseError(
                        f"release {release_id!r} was deleted from {self.root} meanwhile"
                    )
        log.info("%s: live is %s, before it %s, challenger %s", self.root, *live)
        return live

    def _store_live(self, live: Live) -> None:
        experiment = live.experiment
        storage.write_json(storage.join(self.root, LIVE), {
            **live._asdict(), "experiment": None if experiment is None else experiment.to_json(),
        })

    def _is_complete(self, release_id: str) -> bool:
        return (
            bool(ID.fullmatch(release_id)) and not self._is_deleted(release_id)
            and storage.exists(storage.join(self.root, release_id, MANIFEST))
        )

    def _is_deleted(self, release_id: str) -> bool:
        return storage.exists(storage.join(self.root, release_id, DELETED))

    def _live(self) -> Live | None:
        try:
            return self.live()
        except ReleaseNotFoundError:
            return None

    def _refuse_strays(self, folder: str, files: Mapping[str, str]) -> None:
        """Refuse a folder with files of another, interrupted release."""
        strays = set(storage.list_files(folder)) - {*files, CONFIG}
        if strays:
            raise ReleaseError(
                f"{folder} holds {sorted(strays)}, which are not of this release; "
                "delete them or choose another id"
            )


def _split_facts(facts: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Return the facts for the manifest and the configuration."""
    config = facts.get("config")
    if not isinstance(config, Mapping):
        raise ReleaseError("release facts: config: must be the whole configuration")
    return {name: value for name, value in facts.items() if name != "config"}, config


def _check_name(name: str) -> None:
    if name in (MANIFEST, CONFIG):
        raise ReleaseError(f"release file {name!r} is written by the registry")
    if not FILE_NAME.fullmatch(name):
        raise ReleaseError(
            f"release file {name!r} must be a relative path to a "
            ".safetensors, .parquet or .json file"
        )


def _store(uri: str, data: bytes) -> FileEntry:
    """Write one file and read it back."""
    if not _is_content_of(uri.rpartition(".")[2], data):
        raise ReleaseError(f"release file {uri!r} does not hold what its name says")
    storage.write_bytes(uri, data)
    entry = FileEntry(storage.sha256(data), len(data))
    stored, _ = storage.describe_file(uri)
    if stored != entry.sha256:
        raise ChecksumError(f"{uri} has sha256 {stored} after writing {entry.sha256}")
    return entry


def _is_content_of(kind: str, data: bytes) -> bool:
    """Tell whether bytes look like safetensors, Parquet or JSON."""
    if kind == "parquet":
        return data[:4] == data[-4:] == b"PAR1"
    if kind == "safetensors":      # header size (8 bytes), header (JSON), tensors
        return int.from_bytes(data[:8], "little") <= len(data) - 8 and data[8:9] == b"{"
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def _read_json(uri: str) -> Any:
    try:
        return storage.read_json(uri)
    except ValueError as error:
        raise ReleaseFormatError(f"{uri} is not JSON: {error}") from error
