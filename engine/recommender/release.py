"""A release folder -> everything that answers requests, held in memory.

The retriever's half is catalogue, profiles, CRM, popularity and fusion; the scorer adds the
language model with its bank and prompts.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine import storage
from engine.config import (
    BaseModelConfig,
    EngineConfig,
    ItemTextConfig,
    RetrievalConfig,
    SourceConfig,
)
from engine.data.catalogue import Catalogue
from engine.data.profiles import Profiles
from engine.errors import ReleaseError
from engine.models.base import base_model_digest, load_tokenizer
from engine.models.crm_scorer import CRMScorer
from engine.models.fusion import Fusion
from engine.models.personalized import PersonalizedLLM
from engine.models.popularity import Popularity
from engine.prompts.template import PromptBuilder
from engine.releases.registry import Registry
from engine.retrieval.index import ItemIndex, build_index
from engine.retrieval.item_text import Projector
from engine.types import UNKNOWN, FloatArray, IntArray

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LanguageHalf:
    """The language model with its bank, and the text that it reads."""

    model: PersonalizedLLM
    prompts: PromptBuilder
    base_model: BaseModelConfig


@dataclass(frozen=True)
class ItemTexts:
    """How texts of items became vectors, so that an item that comes later is put among them."""

    config: ItemTextConfig
    projector: Projector
    encoder: str
    """Digest of what makes raw vectors of items: encoder, its weights, the fields it reads."""


ItemsByValue = Mapping[str, Mapping[str, IntArray]]
"""Item field -> value -> the items that have it, ascending."""


@dataclass(frozen=True, eq=False)
class LoadedRelease:
    """One verified release, over its own catalogue or one that was changed since (feed.py)."""

    release_id: str
    source: SourceConfig
    catalogue: Catalogue
    item_texts: ItemTexts
    profiles: Profiles
    crm: CRMScorer
    popularity: Popularity
    fusion: Fusion
    item_index: ItemIndex
    """Finds items by their retrieval vectors."""
    items_by_value: ItemsByValue
    offered_I: npt.NDArray[np.bool_]
    """Which items may be answered: not the unknown one, and none that was withdrawn."""
    language: LanguageHalf | None = None
    revision: int = 0
    """That of the last change of an item that is in it."""

    @property
    def max_history(self) -> int:
        """Return how many events of a user, the newest, its models learned to read."""
        return self.crm.space.crm.max_history

    @property
    def vectors_ID(self) -> FloatArray:
        """Return the unit text vector of every item."""
        return self.crm.space.items.text_IT

def items_by_value(catalogue: Catalogue) -> dict[str, dict[str, IntArray]]:
    """Return for each item field and value the items that have it, ascending."""
    index: dict[str, dict[str, list[int]]] = {}
    for name, column in catalogue.fields.items():
        places = index.setdefault(name, {})
        for item, values in enumerate(column):
            for value in dict.fromkeys(values):
                places.setdefault(value, []).append(item)
    return {
        name: {value: np.array(items) for value, items in places.items()}
        for name, places in index.items()
    }


def load_release(
    registry: Registry, release_id: str, *, model_cache: str, device: str, with_llm: bool = True,
    retrieval: RetrievalConfig | None = None,
) -> LoadedRelease:
    """Verify a release, every file of it, and load it.

    Without `retrieval` candidates are searched exactly.

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
