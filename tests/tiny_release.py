"""A release from generated data with random weights: every file is real, nothing is trained.

    world = tiny_world(tmp_path)                  # base model, registry, histories
    world.publish("r1")                           # one release; other seeds give other weights
    world.registry.promote("r1")

Takes about a second. The histories are those of tests/generated.py.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from sqlalchemy import Engine

from engine import storage
from engine.config import (
    BankConfig,
    BaseModelConfig,
    CRMConfig,
    EngineConfig,
    PromptConfig,
    RunConfig,
    SourceConfig,
)
from engine.data.catalogue import Catalogue
from engine.data.histories import build_histories
from engine.data.profiles import Profiles
from engine.data.schema import INTERACTIONS, histories_of, users_schema
from engine.models.base import base_model_digest, load_base_model
from engine.models.crm import CRM, CRMShape
from engine.models.crm_features import num_levels
from engine.models.crm_maps import CRMMaps
from engine.models.crm_scorer import write_crm
from engine.models.crm_statistics import count_events
from engine.models.crm_vocabulary import FieldTable, fit_field
from engine.models.fusion import Calibration, Fusion
from engine.models.personalized import PersonalizedLLM
from engine.models.popularity import Popularity
from engine.recommender.loading import load_release
from engine.recommender.release import LoadedRelease
from engine.releases.registry import Registry
from engine.state.histories import PastEvent, seed
from engine.types import FloatArray, GateInput, History, HistoryScope
from tests.generated import Sample, make_sample
from tests.tiny_llama import tiny_base

TEXT_DIMS = 8
HIDDEN = 32
CRM_KEY = "0123456789ab"
FUSION = Fusion(0.7, 0.4, -0.1, Calibration(0.9, 0.05), Calibration(1.1, -0.2))
SMALL_CRM = CRMConfig(
    embedding_dim=8, state_dim=12, hidden_dims=(16, 10), max_behaviors=6, max_history=40,
    max_recent=10, batch_size=32,
)


@dataclass(frozen=True)
class TinyWorld:
    """Generated data, a tiny base model and a registry."""

    root: Path
    base: BaseModelConfig
    registry: Registry
    sample: Sample
    catalogue: Catalogue
    profiles: Profiles
    histories: dict[str, History]
    histories_table: pa.Table
    source: SourceConfig

    @property
    def registry_root(self) -> str:
        return self.registry.root

    def config(
        self, gate: GateInput = GateInput.USER, scope: HistoryScope = HistoryScope.SLATE
    ) -> EngineConfig:
        """Return the configuration of a release."""
        return EngineConfig(
            run=RunConfig(registry=self.registry_root), source=self.source, base_model=self.base,
            crm=SMALL_CRM, prompt=PromptConfig(history_size=4, scope=scope),
            bank=BankConfig(num_adapters=3, rank=2, gate=gate, gate_hidden=7, temperature=0.5),
        )

    def publish(
        self, release_id: str, *, seed: int = 1, gate: GateInput = GateInput.USER,
        scope: HistoryScope = HistoryScope.SLATE, inputs: dict[str, str] | None = None,
        template_sha256: str | None = None, golden: Any = None,
    ) -> str:
        """Write a release with random weights of this seed; return its folder.

        `golden`: JSON values of its golden requests; without them it has none.
        """
        config = self.config(gate, scope)
        folder = str(self.root / "parts" / release_id)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._write_parts(folder, config, np.random.default_rng(seed))
        if golden is not None:
            storage.write_json(storage.join(folder, "golden.json"), golden)
        files = {name: storage.join(folder, name) for name in storage.list_files(folder)}
        return self.registry.publish(release_id, files, {
            "inputs": inputs or {}, "config": config.settings(), "crm_key": CRM_KEY,
            "base_model": {"name": self.base.name, "files": base_model_digest(self.base)},
            "data_window": {}, "mixing": config.bank.mixing.value, "gate": gate.value,
            "scope": scope.value, "metrics": {}, "template_sha256": template_sha256,
        })

    def load(self, release_id: str, *, with_llm: bool = True) -> LoadedRelease:
        """Return a release as a scorer holds it, or without its language model a retriever."""
        return load_release(
            self.registry, release_id, model_cache="", device="cpu", with_llm=with_llm
        )

    def _write_parts(self, folder: str, config: EngineConfig, rng: np.random.Generator) -> None:
        vectors = random_vectors(rng, len(self.catalogue))
        storage.write_table(storage.join(folder, "catalogue.parquet"), self.catalogue.to_table())
        users = [self.profiles.of(user[0]) for user in self.sample.users]
        storage.write_table(storage.join(folder, "users.parquet"), pa.Table.from_pylist(
            [{"user_id": user.user_id, **(user.fields or {})} for user in users],
            schema=users_schema(self.source.user_fields),
        ))
        storage.write_tensors(storage.join(folder, "item_text.safetensors"), {
            "vectors": vectors, "mean": np.zeros(HIDDEN, np.float32),
            "components": rng.normal(size=(TEXT_DIMS, HIDDEN)).astype(np.float32),
        })
        storage.write_json(storage.join(folder, "fusion.json"), FUSION.to_json())
        storage.write_json(storage.join(folder, "metrics.json"), {})
        self.popularity().save(storage.join(folder, "popularity.safetensors"))
        self._write_crm(storage.join(folder, "crm"), config)
        write_bank(storage.join(folder, "bank"), config)

    def seed(self, database: Engine) -> None:
        """Store the histories as a service is seeded with them."""
        ids = self.catalogue.item_ids
        seed(database, (
            (user_id, [PastEvent(ids[item], *rest) for item, *rest in zip(*(
                column.tolist() for column in (
                    history.items, history.timestamps_s, history.ratings, history.labels
                )
            ), strict=True)])
            for user_id, history in self.histories.items()
        ))

    def popularity(self) -> Popularity:
        """Count all events."""
        events = self.counts()
        return Popularity.fit(events[:, 1], events[:, 0], smoothing=10.0, implicit=False)

    def counts(self) -> FloatArray:
        """Return events, positives and sum of ratings by item."""
        size = len(self.catalogue)
        return count_events(self.histories.values(), size)

    def _write_crm(self, folder: str, config: EngineConfig) -> None:
        maps = CRMMaps(
            sorted(self.histories), self.catalogue.item_ids[1:],
            FieldTable([
                fit_field(name, Counter(
                    value for user in self.sample.users
                    for value in (self.profiles.of(user[0]).fields or {})[name]
                ))
                for name in self.source.user_fields
            ]),
            FieldTable([
                fit_field(name, Counter(v for values in column for v in values))
                for name, column in self.catalogue.fields.items()
            ]),
            self.counts(),
        )
        shape = CRMShape(
            len(maps.user_ids) + 1, len(maps.item_ids) + 1, maps.user_fields.size,
            maps.item_fields.size, num_levels(self.source), TEXT_DIMS,
        )
        model = CRM(shape, config.crm)
        weights = {name: value.numpy() for name, value in model.state_dict().items()}
        write_crm(folder, weights, maps, {
            "shape": asdict(shape), "crm": config.crm.settings(), "source": self.source.settings(),
        })


def random_vectors(rng: np.random.Generator, size: int) -> FloatArray:
    """Return unit rows; row 0 is zero."""
    vectors = rng.normal(size=(size, TEXT_DIMS))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[0] = 0
    return vectors.astype(np.float32)


def write_bank(folder: str, config: EngineConfig) -> None:
    """Write a bank whose every weight is random: B too, so that gates change the answer."""
    tokenizer, base = load_base_model(config.base_model)
    state_dims = (config.crm.state_dim, config.crm.hidden_dims[-1])
    model = PersonalizedLLM(base, tokenizer, config.bank, config.prompt, state_dims)
    for parameter in model.adapter_parameters().values():
        parameter.data += 0.3 * torch.randn_like(parameter)
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    model.save(folder, weights, CRM_KEY, config.prompt)


def tiny_world(root: Path, *, users: int = 12, items: int = 40, events: int = 240) -> TinyWorld:
    """Return generated data, the tiny base model and an empty registry below `root`."""
    sample = make_sample(users, items, events, seed=3)
    source = SourceConfig(path=str(root))
    by_id = sorted(sample.items)
    catalogue = Catalogue(
        ["", *(item[0] for item in by_id)], ["", *(item[1] for item in by_id)],
        {"genres": [(), *(item[3] for item in by_id)], "year": [(), *((i[2],) for i in by_id)]},
    )
    profiles = Profiles.from_table(pa.Table.from_pylist([
        {"user_id": user, "gender": [gender], "age": [str(age)], "occupation": [job]}
        for user, age, gender, job in sample.users
    ], schema=users_schema(source.user_fields)), source.user_fields)
    rows = [
        {"user_id": user, "item_id": item, "timestamp_s": time_s, "rating": float(rating),
         "label": int(rating >= source.label.threshold)}
        for user, item, rating, time_s in sample.events
    ]
    table = build_histories(
        pa.Table.from_pylist(rows, schema=INTERACTIONS), pa.array(catalogue.item_ids[1:])
    )
    base = tiny_base(root / "base", hidden_size=HIDDEN)
    return TinyWorld(
        root, base, Registry(str(root / "releases")), sample, catalogue, profiles,
        histories_of(table), table, source,
    )
