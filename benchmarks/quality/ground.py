"""The stages that all rows of a data set share."""

from dataclasses import dataclass

from engine import storage
from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.models.popularity import FILE as POPULARITY
from engine.models.popularity import Popularity
from engine.stages.crm import score_crm, train_crm
from engine.stages.histories import build_histories
from engine.stages.inputs import Inputs
from engine.stages.interactions import import_data
from engine.stages.items import embed_items
from engine.stages.popularity import count_popularity
from engine.stages.slates import build_slates
from engine.types import IntArray, Window


@dataclass(frozen=True, slots=True)
class States:
    """A CRM and what it says of every slate."""

    crm: Artifact
    scores: Artifact


class Ground:
    """Histories, slates, item vectors, popularity and CRMs of one configuration."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.root = storage.absolute(config.run.root)
        interactions = import_data(self.root, config)
        self.histories = build_histories(self.root, config, interactions)
        self.slates = build_slates(self.root, config, self.histories)
        self.popularity = count_popularity(self.root, config, self.histories)
        self.item_text = embed_items(self.root, config, self.histories)

    def inputs(self) -> Inputs:
        """Return what CRM and prompts are made of."""
        return Inputs.of(self.config, self.histories, self.slates, self.item_text)

    def training_events(self) -> IntArray:
        """Return the events of the training window by item index [items + 1]."""
        return Popularity.load(self.popularity.path(POPULARITY)).events

    def states(self, *, in_sample: bool = False, seed: int | None = None) -> States:
        """Return the CRM trained on [start, T0), or with the bank's rows on [start, T1)."""
        windows = (Window.CRM, Window.BANK) if in_sample else (Window.CRM,)
        inputs = self.histories, self.slates, self.item_text
        crm = train_crm(self.root, self.config, *inputs, windows=windows, seed=seed)
        return States(crm, score_crm(self.root, self.config, *inputs, crm))
