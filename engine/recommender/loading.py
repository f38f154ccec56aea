"""A release folder -> a verified LoadedRelease, which answers its golden requests as it must."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine import storage
from engine.config import BaseModelConfig, EngineConfig, RetrievalConfig
from engine.data.catalogue import Catalogue
from engine.data.profiles import Profiles
from engine.errors import ReleaseError
from engine.models.base import base_model_digest, load_tokenizer
from engine.models.crm_scorer import CRMScorer
from engine.models.fusion import Fusion
from engine.models.personalized import PersonalizedLLM
from engine.models.popularity import Popularity
from engine.prompts.template import PromptBuilder
from engine.recommender.golden import check_golden
from engine.recommender.release import (
    ItemTexts,
    LanguageHalf,
    LoadedRelease,
    items_by_value,
)
from engine.releases.registry import Registry
from engine.retrieval.index import build_index
from engine.retrieval.item_text import Projector
from engine.types import UNKNOWN, FloatArray

log = logging.getLogger(__name__)


def load_release(
    registry: Registry, release_id: str, *, model_cache: str, device: str, with_llm: bool = True,
    retrieval: RetrievalConfig | None = None,
) -> LoadedRelease:
    """Verify a release, every file of it, and load it.

    Without `retrieval` candidates are searched exactly.

    Raises ChecksumError, ReleaseNotFoundError, ReleaseFormatError, ConfigError where the base model
    is not in the cache, or ReleaseError where base model or prompts here are not those that the
    bank was trained on, or where golden requests are answered otherwise here.
    """
    opened = _open(registry, release_id, model_cache, with_llm=with_llm)
    folder, config = registry.folder(release_id), opened.config
    language = None
    if opened.prompts is not None:
        base = opened.base_model.model_copy(update={"device": device})
        model = PersonalizedLLM.load(base, storage.join(folder, "bank"))
        language = LanguageHalf(model, opened.prompts, base)
    crm = CRMScorer.load(storage.join(folder, "crm"), opened.catalogue, opened.vectors)
    users = storage.read_table(storage.join(folder, "users.parquet"))
    release = LoadedRelease(
        release_id, config.source, opened.catalogue, opened.item_texts,
        Profiles.from_table(users, config.source.user_fields), crm,
        Popularity.load(storage.join(folder, "popularity.safetensors")),
        Fusion.from_json(storage.read_json(storage.join(folder, "fusion.json"))),
        build_index(crm.item_vectors(), retrieval), items_by_value(opened.catalogue),
        np.arange(len(opened.catalogue)) > UNKNOWN, language,
    )
    log.info(
        "release %s: loaded from %s, %d items, %s", release_id, folder, len(opened.catalogue) - 1,
        type(release.item_index).__name__,
    )
    check_golden(release, folder)
    return release


def check_release(
    registry: Registry, release_id: str, *, model_cache: str, with_llm: bool = True
) -> None:
    """Raise what `load_release` would raise before a model is loaded."""
    _open(registry, release_id, model_cache, with_llm=with_llm)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A verified release before its models are loaded."""

    config: EngineConfig
    base_model: BaseModelConfig
    catalogue: Catalogue
    vectors: FloatArray
    item_texts: ItemTexts
    prompts: PromptBuilder | None


def _open(registry: Registry, release_id: str, model_cache: str, *, with_llm: bool) -> _Opened:
    facts = registry.verify(release_id).facts
    folder = registry.folder(release_id)
    config = registry.read_config(release_id)
    base = config.base_model.model_copy(update={"cache": model_cache})
    catalogue = Catalogue.from_table(
        storage.read_table(storage.join(folder, "catalogue.parquet")), config.source.item_fields
    )
    tensors = storage.read_tensors(storage.join(folder, "item_text.safetensors"))
    vectors = tensors["vectors"]
    item_texts = ItemTexts(
        config.item_text, Projector(tensors["mean"], tensors["components"]),
        encoder_digest(config, facts.base_model.files),
    )
    prompts = None
    if with_llm:
        _check_base_model(facts.base_model.files, base)
        _check_bank(storage.read_json(storage.join(folder, "bank/bank.json")), facts.crm_key)
        prompts = PromptBuilder(
            config.prompt, config.source, load_tokenizer(base), catalogue, vectors
        )
        _check_template(facts.template_sha256, prompts)
    return _Opened(config, base, catalogue, vectors, item_texts, prompts)


def encoder_digest(config: EngineConfig, base_files: Mapping[str, str]) -> str:
    """Return a digest of what raw vectors of items depend on beside their texts' content."""
    encoder, path = config.item_text.encoder, config.item_text.encoder_path
    is_base = encoder == "base_model"
    weights = (config.base_model.name, dict(base_files)) if is_base else path
    how = [encoder, weights, list(config.source.item_fields)]
    return storage.sha256(storage.dump_json(how))[:16]


def _check_bank(bank: Mapping[str, Any], crm_key: str) -> None:
    """Refuse a bank whose gates learned to read another CRM."""
    if bank["crm_key"] != crm_key:
        raise ReleaseError(
            f"the bank was trained under CRM {bank['crm_key']!r}, the release holds {crm_key!r}"
        )


def _check_template(expected: str | None, prompts: PromptBuilder) -> None:
    """Refuse prompts that differ from those that the bank learned from."""
    if expected is not None and expected != prompts.digest():
        raise ReleaseError(
            "the prompts of this version or tokenizer are not those that the bank was trained on; "
            "serve the release with the version that made it, or train again"
        )


def _check_base_model(expected: Mapping[str, str], base: BaseModelConfig) -> None:
    """Compare the base model's files with those that the bank was trained on."""
    found = base_model_digest(base)
    wrong = sorted(name for name in expected if found.get(name) != expected[name])
    if wrong:
        raise ReleaseError(
            f"base model {base.name!r} differs from the release's in {wrong}; fetch the same one"
        )
