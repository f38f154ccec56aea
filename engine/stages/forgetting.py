"""Registry, run and ledger -> what no night needs any more is deleted.

Releases go before what they were made of, a manifest before the files that it lists: whoever is
killed in between leaves nothing that looks whole, and the next one deletes the rest.
"""

import logging
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass

from engine import artifacts, storage
from engine.data.layers import layer_names
from engine.releases.registry import Registry
from engine.releases.retention import (
    OUTPUT,
    TRAINING,
    Folder,
    Published,
    holding_claims,
    old_folders,
    old_releases,
)
from engine.state.nights import Entry, EntryKind

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What went, or would go."""

    releases: Sequence[Published] = ()
    folders: Sequence[Folder] = ()

    @property
    def size_bytes(self) -> int:
        """Return the size of all files."""
        sizes = [each.size_bytes for each in self.releases]
        return sum([*sizes, *(each.size_bytes for each in self.folders)])


def forget(
    run: str, registry: Registry, ledger: Sequence[Entry], keep_releases: int | None, *,
    dry_run: bool = False,
) -> Forgotten:
    """Delete what no kept release was made of, and is older than the last night that ended.

    Nothing goes before a night has ended, or where all releases are kept (None). dry_run: only say
    what would go. Raises EngineError where a release's manifest cannot be read: nobody knows what
    that one needs, so nothing goes.
    """
    ledger = of_registry(ledger, registry.root)
    before_s = opened_s(ledger)
    if before_s is None or keep_releases is None:
        return Forgotten()
    run = storage.absolute(run)
    folders = read_folders(run)                 # before the releases: these may come meanwhile
    for release_id in () if dry_run else registry.half_deleted():
        registry.delete(release_id)
    published = read_published(run, registry)
    named = {*registry.live().named(), *interrupted_parents(ledger)}
    gone = old_releases(published, named, keep_releases)
    if not dry_run:
        gone = [each for each in gone if registry.delete(each.release_id)]
    kept = [each for each in published if each not in gone]
    reports = reports_of(ledger, {each.release_id for each in kept})
    now_s = time.time()
    old = old_folders(folders, kept, reports, before_s=before_s, now_s=now_s)
    for name in holding_claims(folders, now_s):
        log.warning("%s/%s: somebody writes there; no stage's output is deleted", run, name)
    for folder in () if dry_run else old:
        log.info("%s/%s: no release needs it, deleted", run, folder.name)
        artifacts.delete(storage.join(run, folder.name))
    return Forgotten(tuple(gone), tuple(old))


def of_registry(ledger: Sequence[Entry], root: str) -> list[Entry]:
    """Return the lines about a registry: a night's beginning may say which one it is of."""
    of_night = {
        entry.night_id: entry.detail.get("registry", root) for entry in ledger
        if entry.kind is EntryKind.OPENED
    }
    return [
        entry for entry in ledger
        if of_night.get(entry.opened_id or entry.night_id, root) == root
    ]


def opened_s(ledger: Sequence[Entry]) -> int | None:
    """Return when the last night was opened that was promoted or held."""
    opened = {entry.night_id: entry.at_s for entry in ledger}
    ended = [
        opened[entry.opened_id] for entry in ledger
        if entry.kind in (EntryKind.PROMOTED, EntryKind.HELD) and entry.opened_id is not None
    ]
    return ended[-1] if ended else None


def interrupted_parents(ledger: Sequence[Entry]) -> set[str]:
    """Return the releases that nights go on from which nothing has ended."""
    ended = {entry.opened_id for entry in ledger}
    return {
        entry.parent_id for entry in ledger
        if entry.kind is EntryKind.OPENED and entry.night_id not in ended
    }


def reports_of(ledger: Sequence[Entry], release_ids: Set[str]) -> set[str]:
    """Return the folders of the comparisons that some releases were judged by."""
    return {
        str(entry.detail[name]).rstrip("/").rpartition("/")[2]
        for entry in ledger if entry.release_id in release_ids
        for name in ("report", "old_report") if entry.detail.get(name)
    }


def read_published(run: str, registry: Registry) -> list[Published]:
    """Return the releases of a registry, with what they need of a run."""
    found = []
    for release_id in registry.list():
        manifest = registry.read_manifest(release_id)
        needs = {f"{kind}-{key}" for kind, key in manifest.facts.inputs.items()}
        for name in [each for each in needs if each.startswith("histories-")]:
            needs.update(layer_names(storage.join(run, name)))
        found.append(
            Published(release_id, manifest.created_s, manifest.size_bytes, frozenset(needs))
        )
    return found


def read_folders(run: str) -> list[Folder]:
    """Return the folders of a run that stages have written: outputs, claims and trainings."""
    found = []
    for name, contents in storage.describe_folders(run).items():
        inputs = _inputs_of(run, name) if OUTPUT.fullmatch(name) else frozenset()
        if inputs is not None:
            found.append(Folder(name, *contents, inputs))
    trainings = storage.describe_folders(storage.join(run, TRAINING))
    return [*found, *(Folder(f"{TRAINING}/{name}", *each) for name, each in trainings.items())]


def _inputs_of(run: str, name: str) -> frozenset[str] | None:
    """Return what an output was made of; None if its manifest says that it is something else."""
    uri = storage.join(run, name, artifacts.MANIFEST)
    if not storage.exists(uri):
        return frozenset()
    try:
        manifest = storage.read_json(uri)
    except ValueError:                          # damaged: it is of no use to anybody
        return frozenset()
    if f"{manifest.get('kind')}-{manifest.get('key')}" != name:
        return None
    return frozenset(f"{kind}-{key}" for kind, key in manifest["inputs"].items())
