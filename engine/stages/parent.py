"""The live release -> the artifacts that a night goes on from."""

from dataclasses import dataclass, replace
from typing import Any, Self

from engine import storage
from engine.artifacts import Artifact, open_artifact
from engine.config import EngineConfig, RolesConfig
from engine.data.roles import NightRows, Roles
from engine.data.splits import DAY_S
from engine.errors import ArtifactError, ConfigError, ReleaseError
from engine.releases.registry import Registry
from engine.types import Timeline

SHARED = ("slates", "item_text", "prompt", "bank")
"""Sections of the configuration in which a release equals its parent."""


@dataclass(frozen=True, slots=True)
class Parent:
    """A release, and what it was made of."""

    release_id: str
    timeline: Timeline
    """All before t0 trained the CRM, all before t2 was learned or chosen from."""
    roles: Roles
    """Those that its children keep to, too."""
    day_s: int
    """Where the next night's day begins: of what is later it knows nothing."""
    histories: Artifact
    item_text: Artifact
    crm: Artifact
    bank: Artifact
    fusion: Artifact

    @classmethod
    def read(cls, registry: Registry, release_id: str, run: str, config: EngineConfig) -> Self:
        """Return a release of which the run has the artifacts.

        Raises ReleaseError where they are gone, ConfigError where the configuration wants another
        model than the release has.
        """
        facts = registry.verify(release_id).facts
        _check_same_model(registry.read_config(release_id), config, release_id)
        timeline = Timeline(**facts.data_window)
        artifacts = {
            kind: _open(run, kind, facts.inputs[kind], release_id)
            for kind in ("histories", "item_text", "crm", "bank", "fusion")
        }
        roles = replace(
            _roles(facts.roles, config.night.roles, timeline, release_id),
            max_user_rows=config.night.max_user_rows,
        )
        day_s = timeline.end_s + 1 if facts.roles is None else timeline.t2_s
        return cls(release_id, timeline, roles, day_s, **artifacts)

    def rows_until(self, end_s: int, tune_days: int) -> NightRows:
        """Return what the rows before a time are for in the night that follows."""
        return NightRows(
            self.roles, crm_since_s=self.timeline.t0_s, bank_since_s=self.timeline.t2_s,
            tune_since_s=max(self.roles.since_s, end_s - tune_days * DAY_S), end_s=end_s,
        )

    def all_rows_until(self, end_s: int, tune_days: int) -> NightRows:
        """Return what the rows are for where CRM and bank begin anew: none is old."""
        rows = self.rows_until(end_s, tune_days)
        return replace(rows, crm_since_s=self.timeline.start_s, bank_since_s=self.roles.since_s)


def _open(run: str, kind: str, key: str, release_id: str) -> Artifact:
    uri = storage.join(run, f"{kind}-{key}")
    try:
        return open_artifact(uri, kind)
    except ArtifactError as error:
        raise ReleaseError(
            f"release {release_id!r} was made from {uri}, which is gone ({error}): a night goes on "
            "from the run that made the live release; set run.root to it, or train anew"
        ) from error


def _roles(
    found: dict[str, Any] | None, wanted: RolesConfig, timeline: Timeline, release_id: str
) -> Roles:
    """Return the roles of a release of a night, or new ones from where a training reports."""
    if found is None:
        return Roles(wanted, timeline.t2_s)
    roles = Roles.from_json(found)
    if roles.config != wanted:
        raise ConfigError(
            f"night.roles {wanted.settings()} differ from those of release {release_id!r}, "
            f"{roles.config.settings()}: rows that it learned would judge; train anew to change "
            "them"
        )
    return roles


def _check_same_model(have: EngineConfig, want: EngineConfig, release_id: str) -> None:
    pairs = {
        **{section: (getattr(have, section), getattr(want, section)) for section in SHARED},
        "source.label": (have.source.label, want.source.label),
        "source.item_fields": (have.source.item_fields, want.source.item_fields),
        "source.user_fields": (have.source.user_fields, want.source.user_fields),
        "base_model.name": (have.base_model.name, want.base_model.name),
        "histories.num_partitions": (
            have.histories.num_partitions, want.histories.num_partitions
        ),
    }
    for name, (one, other) in pairs.items():
        if one != other:
            raise ConfigError(
                f"{name} is {other!r}, in the live release {release_id!r} it is {one!r}: a night "
                "goes on with the same model; train anew to change it"
            )
