"""What a release says of itself: `manifest.json`, the file that is written last.

    {"format_version", "release_id", "created_s", "files": {name: {"sha256", "size_bytes"}},
     "facts": {...}, "sha256"}         sha256 of the manifest without this entry

An engine reads its own format and the ones before it; `UPGRADES` brings an older manifest to the
next format, step by step.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from engine import storage
from engine.errors import ChecksumError, ReleaseError, ReleaseFormatError

FORMAT_VERSION = 1

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]

UPGRADES: Mapping[int, Upgrade] = {}
"""Format -> function from a manifest of that format to one of the next."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a release."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class BaseModelReference:
    """The frozen language model that the bank was trained on; a release does not contain it."""

    name: str
    files: dict[str, str]
    """Name -> sha256 of its weights, configuration, tokenizer and chat template; empty for a
    Hugging Face id."""


@dataclass(frozen=True, slots=True)
class ReleaseFacts:
    """Where a release comes from and what it needs."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    inputs: dict[str, str]
    """Kind -> key of the artifacts in it."""
    base_model: BaseModelReference
    data_window: dict[str, int]
    """Cut times of the timeline, in seconds."""
    crm_key: str
    """Key of the CRM; its bank fits no other."""
    mixing: str
    """types.MixingMode."""
    gate: str
    """types.GateInput."""
    scope: str
    """types.HistoryScope."""
    metrics: dict[str, Any]
    """Results on the validation and test windows."""
    template_sha256: str | None = None
    """Digest of the prompt template, if it was recorded."""
    parent_id: str | None = None
    """The release from which a night went on; None for one that was trained as a whole."""
    roles: dict[str, Any] | None = None
    """data.roles.Roles that its training kept to, as JSON; None: it knew none."""


@dataclass(frozen=True, slots=True)
class ReleaseManifest:
    """A complete release."""

    format_version: int
    release_id: str
    created_s: int
    """Time of publishing, seconds since 1970."""
    files: dict[str, FileEntry]
    """Path in the release -> size and checksum; `config.json` is the whole configuration."""
    facts: ReleaseFacts

    @property
    def size_bytes(self) -> int:
        """Return the size of all files."""
        return sum(each.size_bytes for each in self.files.values())


FACTS = TypeAdapter(ReleaseFacts)
MANIFEST = TypeAdapter(ReleaseManifest)


def parse_facts(values: Mapping[str, Any]) -> ReleaseFacts:
    """Return the facts of a new release; raise ReleaseError that names what is missing or wrong."""
    try:
        return FACTS.validate_python(dict(values))
    except ValidationError as error:
        raise ReleaseError(f"release facts: {faults_of(error)}") from error


def dump_manifest(manifest: ReleaseManifest) -> dict[str, Any]:
    """Return the manifest as JSON values, its own checksum among them."""
    values = asdict(manifest)
    return {**values, "sha256": storage.sha256(storage.dump_json(values))}


def parse_manifest(
    values: Any, *, format_version: int = FORMAT_VERSION, upgrades: Mapping[int, Upgrade] = UPGRADES
) -> ReleaseManifest:
    """Return a manifest from JSON values of this format or of one before it.

    Raises ReleaseFormatError if it is newer, too old or no manifest at all, ChecksumError if it was
    changed.
    """
    found = values.get("format_version") if isinstance(values, dict) else None
    readable = _readable(format_version, upgrades)
    if type(found) is not int or found not in readable:
        raise ReleaseFormatError(
            f"release format version {found!r}; this engine reads {_ranged(readable)}"
        )
    content = {name: value for name, value in values.items() if name != "sha256"}
    if values.get("sha256") != storage.sha256(storage.dump_json(content)):
        raise ChecksumError(f"the manifest of {values.get('release_id')!r} differs from its sha256")
    for version in range(found, format_version):
        content = {**upgrades[version](content), "format_version": version + 1}
    try:
        return MANIFEST.validate_python(content)
    except ValidationError as error:
        raise ReleaseFormatError(
            f"manifest of format version {found} is malformed: {faults_of(error)}"
        ) from error


def _readable(newest: int, upgrades: Mapping[int, Upgrade]) -> range:
    """Return the formats from which upgrades lead to the newest without a gap."""
    oldest = newest
    while oldest - 1 in upgrades:
        oldest -= 1
    return range(oldest, newest + 1)


def _ranged(versions: range) -> str:
    """Return "1" or "1 to 3"."""
    return str(versions[0]) if len(versions) == 1 else f"{versions[0]} to {versions[-1]}"


def faults_of(error: ValidationError) -> str:
    """Return the entries at fault and why, in one line."""
    return "; ".join(
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
    )
