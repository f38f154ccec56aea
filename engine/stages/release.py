"""All stages' outputs -> one immutable release in the registry.

A release's id is the digest of the artifacts in it, so a run that is started again finds the
release that it made. Bank and CRM must belong together: a bank routed by another CRM is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine import storage
from engine.artifacts import Artifact, artifact_key
from engine.config import EngineConfig
from engine.data.roles import Roles
from engine.data.splits import read_timeline
from engine.errors import ReleaseError
from engine.models.base import base_model_digest
from engine.models.personalized import STANDARD
from engine.models.popularity import FILE as POPULARITY
from engine.recommender.golden import FILE as GOLDEN
from engine.releases.registry import Registry
from engine.stages.adapters import LEARNING
from engine.stages.golden import ask_golden
from engine.stages.items import VECTORS
from engine.stages.prompts import make_builder


@dataclass(frozen=True, slots=True)
class Parts:
    """The artifacts of a release."""

    histories: Artifact
    item_text: Artifact
    crm: Artifact
    bank: Artifact
    popularity: Artifact
    fusion: Artifact
    evaluation: Artifact | None
    """None for a release of a night, which is judged once it is there."""

    def all(self) -> list[Artifact]:
        """Return them in a fixed order."""
        models = [self.histories, self.item_text, self.crm, self.bank, self.popularity, self.fusion]
        return models if self.evaluation is None else [*models, self.evaluation]


@dataclass(frozen=True, slots=True)
class Descent:
    """Where a release of a night comes from."""

    parent_id: str
    roles: Roles


def publish_release(
    run: str, config: EngineConfig, parts: Parts, descent: Descent | None = None
) -> str:
    """Publish the release, with golden requests, unless the registry has it; return its id."""
    bank = storage.read_json(parts.bank.path("bank.json"))
    if bank["crm_key"] != parts.crm.key:
        raise ReleaseError(
            f"the bank was trained under CRM {bank['crm_key']}, not {parts.crm.key}; train it again"
        )
    files, facts = release_files(parts), release_facts(config, parts, descent)
    golden = ask_golden(run, config, parts.all(), files, facts)
    registry = Registry(config.run.registry)
    release_id = artifact_key("release", {}, [*parts.all(), golden])
    if release_id not in registry.list():
        registry.publish(release_id, {**files, GOLDEN: golden.path(GOLDEN)}, facts)
    return release_id


def release_files(parts: Parts) -> dict[str, str]:
    """Return the release's files: path in the release -> URI to copy from."""
    files = {
        "catalogue.parquet": parts.histories.path("items.parquet"),
        "users.parquet": parts.histories.path("users.parquet"),
        "item_text.safetensors": parts.item_text.path(VECTORS),
        "fusion.json": parts.fusion.path("fusion.json"),
        "popularity.safetensors": parts.popularity.path(POPULARITY),
    }
    if parts.evaluation is not None:
        files["metrics.json"] = parts.evaluation.path("report.json")
    for name in ("crm.safetensors", "crm.json", "users.parquet"):
        files[f"crm/{name}"] = parts.crm.path(name)
    for name in ("bank.safetensors", "bank.json"):
        files[f"bank/{name}"] = parts.bank.path(name)
    for name in (LEARNING, STANDARD):       # an older bank has none
        if storage.exists(parts.bank.path(name)):
            files[f"bank/{name}"] = parts.bank.path(name)
    return files


def release_facts(
    config: EngineConfig, parts: Parts, descent: Descent | None = None
) -> Mapping[str, Any]:
    """Return what the manifest says beside the files."""
    timeline = read_timeline(parts.histories.path("timeline.json"))
    settings = config.settings()
    del settings["run"]["state"]            # where users are deleted is nobody's business
    return {
        "inputs": {part.kind: part.key for part in parts.all()},
        "config": settings,
        "base_model": {
            "name": config.base_model.name, "files": base_model_digest(config.base_model),
        },
        "data_window": {
            "start_s": timeline.start_s, "t0_s": timeline.t0_s, "t1_s": timeline.t1_s,
            "t2_s": timeline.t2_s, "end_s": timeline.end_s,
        },
        "crm_key": parts.crm.key,
        "mixing": config.bank.mixing.value, "gate": config.bank.gate.value,
        "scope": config.prompt.scope.value,
        "metrics": {} if parts.evaluation is None else dict(parts.evaluation.facts),
        "template_sha256": make_builder(config, parts.histories, parts.item_text).digest(),
        "parent_id": descent and descent.parent_id, "roles": descent and descent.roles.to_json(),
    }
