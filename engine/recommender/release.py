"""A release folder -> everything that answers requests, held in memory.

The retriever's half is catalogue, profiles, CRM, popularity and fusion; the scorer adds the
language model with its bank and prompts.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from engine import storage
from engine.config import BaseModelConfig, EngineConfig, SourceConfig
from engine.data.catalogue import Catalogue
from engine.data.profiles import Profiles
from engine.errors import ReleaseError
from engine.models.base import base_model_digest, load_tokenizer
from engine.models.crm_scorer import CRMScorer
from engine.models.fusion import Fusion
from engine.models.personalized import PersonalizedLLM
from engine.models.popularity import Popularity
from engine.prompts.template import PromptBuilder
from engine.recommender.titles import Titles
from engine.releases.registry import Registry
from engine.types import FloatArray, IntArray

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LanguageHalf:
    """The language model with its bank, and the text that it reads."""

    model: PersonalizedLLM
    prompts: PromptBuilder


@dataclass(frozen=True)
class LoadedRelease:
    """One verified release."""

    release_id: str
    source: SourceConfig
    catalogue: Catalogue
    profiles: Profiles
    crm: CRMScorer
    popularity: Popularity
    fusion: Fusion
    language: LanguageHalf | None = field(default=None)

    def knows(self, user_id: str) -> bool:
        """Tell whether the release has a profile of this user."""
        return any((self.profiles.of(user_id).fields or {}).values())

    @property
    def max_history(self) -> int:
        """Return how many events of a user, the newest, its models learned to read."""
        return self.crm.space.crm.max_history

    @cached_property
    def retrieval_vectors_ID(self) -> FloatArray:
        """Return the retrieval vector of every item, row 0 being the unknown one."""
        return self.crm.item_vectors()

    @cached_property
    def titles(self) -> Titles:
        """Return all titles, for search."""
        return Titles(self.catalogue, self.popularity.top)

    @cached_property
    def items_by_value(self) -> dict[str, dict[str, IntArray]]:
        """Return for each item field and value the items that have it, ascending."""
        index: dict[str, dict[str, list[int]]] = {}
        for name, column in self.catalogue.fields.items():
            places = index.setdefault(name, {})
            for item, values in enumerate(column):
                for value in dict.fromkeys(values):
                    places.setdefault(value, []).append(item)
        return {
            name: {value: np.array(items) for value, items in places.items()}
            for name, places in index.items()
        }


def load_release(
    registry: Registry, release_id: str, *, model_cache: str, device: str, with_llm: bool = True
) -> LoadedRelease:
    """Verify a release, every file of it, and load it.

    Raises ChecksumError, ReleaseNotFoundError, ReleaseFormatError, ConfigError where the base model
    is not in the cache, or ReleaseError where base model or prompts here are not those that the
    bank was trained on.
    """
    opened = _open(registry, release_id, model_cache, with_llm=with_llm)
    folder, config = registry.folder(release_id), opened.config
    language = None
    if opened.prompts is not None:
        base = opened.base_model.model_copy(update={"device": device})
        model = PersonalizedLLM.load(base, storage.join(folder, "bank"))
        language = LanguageHalf(model, opened.prompts)
    release = LoadedRelease(
        release_id, config.source, opened.catalogue,
        Profiles.from_table(
            storage.read_table(storage.join(folder, "users.parquet")), config.source.user_fields
        ),
        CRMScorer.load(storage.join(folder, "crm"), opened.catalogue, opened.vectors),
        Popularity.load(storage.join(folder, "popularity.safetensors")),
        Fusion.from_json(storage.read_json(storage.join(folder, "fusion.json"))), language,
    )
    log.info(
        "release %s: loaded from %s, %d items", release_id, folder, len(opened.catalogue) - 1
    )
    return release


def check_release(
    registry: Registry, release_id: str, *, model_cache: str, with_llm: bool = True
) -> None:
    """Raise what `load_release` would raise, without loading a model."""
    _open(registry, release_id, model_cache, with_llm=with_llm)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A verified release before its models are loaded."""

    config: EngineConfig
    base_model: BaseModelConfig
    catalogue: Catalogue
    vectors: FloatArray
    prompts: PromptBuilder | None


def _open(registry: Registry, release_id: str, model_cache: str, *, with_llm: bool) -> _Opened:
    facts = registry.verify(release_id).facts
    folder = registry.folder(release_id)
    config = registry.read_config(release_id)
    base = config.base_model.model_copy(update={"cache": model_cache})
    catalogue = Catalogue.from_table(
        storage.read_table(storage.join(folder, "catalogue.parquet")), config.source.item_fields
    )
    vectors = storage.read_tensors(storage.join(folder, "item_text.safetensors"))["vectors"]
    prompts = None
    if with_llm:
        _check_base_model(facts.base_model.files, base)
        _check_bank(storage.read_json(storage.join(folder, "bank/bank.json")), facts.crm_key)
        prompts = PromptBuilder(
            config.prompt, config.source, load_tokenizer(base), catalogue, vectors
        )
        _check_template(facts.template_sha256, prompts)
    return _Opened(config, base, catalogue, vectors, prompts)


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
