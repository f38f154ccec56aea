"""A loaded release: everything that answers requests, held in memory.

The retriever's half is catalogue, profiles, CRM, popularity and fusion; the scorer adds the
language model with its bank and prompts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.config import BaseModelConfig, ItemTextConfig, SourceConfig
from engine.data.catalogue import Catalogue
from engine.data.profiles import Profiles
from engine.models.crm_scorer import CRMScorer
from engine.models.fusion import Fusion
from engine.models.personalized import PersonalizedLLM
from engine.models.popularity import Popularity
from engine.prompts.template import PromptBuilder
from engine.retrieval.index import ItemIndex
from engine.retrieval.item_text import Projector
from engine.types import FloatArray, IntArray


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
