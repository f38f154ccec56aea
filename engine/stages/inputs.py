"""Histories, slates and item vectors of a run, as the stages after them read them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import pyarrow as pa

from engine import storage
from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.data.catalogue import Catalogue
from engine.data.layers import read_histories
from engine.data.profiles import Profiles
from engine.data.roles import Roles
from engine.data.schema import histories_of, part_name
from engine.data.splits import read_timeline
from engine.models.crm_examples import UserSlates, user_slates
from engine.stages.items import VECTORS
from engine.types import FloatArray, History, Timeline, Window


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where they are: plain values that travel to a task, which reads what it needs."""

    config: EngineConfig
    histories: str
    slates: str
    item_text: str
    roles: Roles | None = None
    """None: every row may be counted."""

    @classmethod
    def of(
        cls, config: EngineConfig, histories: Artifact, slates: Artifact, item_text: Artifact,
        roles: Roles | None = None,
    ) -> Self:
        """Return the inputs that these artifacts hold."""
        return cls(config, histories.uri, slates.uri, item_text.uri, roles)

    def catalogue(self) -> Catalogue:
        """Return the catalogue."""
        table = storage.read_table(storage.join(self.histories, "items.parquet"))
        return Catalogue.from_table(table, self.config.source.item_fields)

    def profiles(self, user_ids: Iterable[str]) -> Profiles:
        """Return the profiles of some users."""
        table = storage.read_table(storage.join(self.histories, "users.parquet"))
        return Profiles.from_table(table, self.config.source.user_fields, user_ids)

    def vectors(self) -> FloatArray:
        """Return the items' text vectors."""
        return storage.read_tensors(storage.join(self.item_text, VECTORS))["vectors"]

    def timeline(self) -> Timeline:
        """Return the cut times."""
        return read_timeline(storage.join(self.histories, "timeline.json"))

    def histories_at(self, partition: int) -> dict[str, History]:
        """Return one partition's histories."""
        return histories_of(read_histories(self.histories, partition))

    def slate_table(self, partition: int) -> pa.Table:
        """Return one partition's slates as they are stored."""
        return storage.read_table(storage.join(self.slates, part_name("slates", partition)))

    def slates_at(self, partition: int, windows: tuple[Window, ...]) -> dict[str, UserSlates]:
        """Return one partition's slates of some windows by user."""
        return user_slates(self.slate_table(partition), windows)

    def partitions(self) -> range:
        """Return the partition numbers."""
        return range(len(storage.list_files(storage.join(self.histories, "histories"))))
