"""A stage's output: an immutable folder named by what it was made from.

    <run>/<kind>-<key>/...files    key = digest(kind, version, settings, keys of the inputs)
    <run>/<kind>-<key>/manifest.json    written last: files, checksums, settings, inputs, counts

Equal settings and inputs give the same folder, so a run that is started again goes on where it
stopped, and a change of one setting makes anew only what depends on it.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from engine import storage
from engine.code_version import code_version
from engine.errors import ArtifactError, ChecksumError

log = logging.getLogger(__name__)

MANIFEST, CLAIM = "manifest.json", ".claim"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Artifact:
    """A complete stage output."""

    kind: str
    key: str
    uri: str
    facts: Mapping[str, Any]
    """Counts and small results that the stage recorded (JSON values)."""

    def path(self, *parts: str) -> str:
        """Return the URI of a file in the folder."""
        return storage.join(self.uri, *parts)

    def files(self, folder: str = "") -> list[str]:
        """Return the URIs of the files below a subfolder, in name order."""
        names = sorted(self.manifest()["files"])
        return [self.path(name) for name in names if name.startswith(folder)]

    def manifest(self) -> dict[str, Any]:
        """Return the whole manifest."""
        manifest: dict[str, Any] = storage.read_json(self.path(MANIFEST))
        return manifest

    def verify(self) -> None:
        """Compare every file with its checksum."""
        verify_files(self.uri, self.manifest()["files"])


def artifact_key(
    kind: str, settings: Mapping[str, Any], inputs: Sequence[Artifact], version: int = 1
) -> str:
    """Return the 12 hex digits that name a stage's output."""
    identity = {
        "kind": kind, "format": FORMAT_VERSION, "version": version, "settings": settings,
        "inputs": [[artifact.kind, artifact.key] for artifact in inputs],
    }
    return storage.sha256(storage.dump_json(identity))[:12]


def describe_files(uri: str) -> dict[str, dict[str, Any]]:
    """Return size and checksum of every file below a folder, the manifest left out."""
    described = {}
    for name in storage.list_files(uri):
        if name != MANIFEST:
            sha256, size_bytes = storage.describe_file(storage.join(uri, name))
            described[name] = {"sha256": sha256, "size_bytes": size_bytes}
    return described


def verify_files(uri: str, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ChecksumError at the first file that is missing or differs from its description."""
    for name, entry in files.items():
        path = storage.join(uri, name)
        if not storage.exists(path):
            raise ChecksumError(f"{path} is missing; its manifest lists it")
        found, _ = storage.describe_file(path)
        if found != entry["sha256"]:
            raise ChecksumError(f"{path} has sha256 {found}, its manifest says {entry['sha256']}")


def open_artifact(uri: str, kind: str | None = None) -> Artifact:
    """Return the complete artifact in a folder; ArtifactError if there is none, or of no such kind.
    """
    uri = storage.absolute(uri)                 # one place for every process
    if not storage.exists(storage.join(uri, MANIFEST)):
        raise ArtifactError(
            f"no {MANIFEST} in {uri}: not the folder of a stage's output, or the stage that writes "
            "it has not finished"
        )
    manifest = storage.read_json(storage.join(uri, MANIFEST))
    if kind not in (None, manifest.get("kind")):
        raise ArtifactError(f"{uri} holds {manifest.get('kind', 'a release')!r}, not {kind!r}")
    return Artifact(manifest["kind"], manifest["key"], uri, manifest["facts"])


def delete(uri: str) -> None:
    """Delete a stage's output; what is left by who is killed meanwhile counts as incomplete."""
    storage.delete_file(storage.join(uri, MANIFEST))
    storage.delete_folder(uri)


@contextmanager
def claimed(uri: str) -> Iterator[Callable[[], None]]:
    """Claim a folder, which goes over to whoever claims it last; yield a check of that.

    The check raises ArtifactError if somebody else has begun to write the same folder.
    """
    claim, owner = f"{uri}{CLAIM}", uuid4().hex
    path = storage.join(claim, "owner.json")
    storage.write_json(path, owner)

    def is_ours() -> bool:
        return storage.exists(path) and bool(storage.read_json(path) == owner)

    def check() -> None:
        if not is_ours():
            raise ArtifactError(
                f"another run began to write {uri} meanwhile; start again when it is through"
            )

    try:
        yield check
    finally:
        if is_ours():
            storage.delete_folder(claim)


def make(
    run: str,
    kind: str,
    settings: Mapping[str, Any],
    inputs: Sequence[Artifact],
    write: Callable[[str], Mapping[str, Any]],
    *,
    version: int = 1,
) -> Artifact:
    """Return the artifact of these settings and inputs; call `write(folder)` if it is not there.

    `write` fills the folder, which is empty at its start (what an interrupted attempt left is
    deleted), and returns the facts to record. `version` is the stage's own: it is raised when code
    changes what the same settings and inputs give, so that nothing older is taken for it. Raises
    ArtifactError if another driver began to write the same folder meanwhile: that one finishes it.
    """
    key = artifact_key(kind, settings, inputs, version)
    uri = storage.join(storage.absolute(run), f"{kind}-{key}")      # one place for every process
    if storage.exists(storage.join(uri, MANIFEST)):
        log.info("%s: reusing %s", kind, uri)
        return open_artifact(uri)
    log.info("%s: writing %s", kind, uri)
    start_s, code = time.time(), code_version()
    with claimed(uri) as check:
        storage.delete_folder(uri)
        facts = dict(write(uri))
        files = describe_files(uri)
        check()                                 # last: hashing takes long, too
        seconds = round(time.time() - start_s, 1)
        storage.write_json(storage.join(uri, MANIFEST), {
            "kind": kind, "key": key, "format_version": FORMAT_VERSION, "version": version,
            "settings": dict(settings),
            "inputs": {artifact.kind: artifact.key for artifact in inputs}, "facts": facts,
            "files": files, "seconds": seconds, "made_s": round(start_s),
            "code": code,
        })
    log.info("%s: done in %.1f s %s", kind, seconds, facts)
    return open_artifact(uri)
