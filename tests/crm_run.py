"""Artifacts of a generated source up to what a CRM trains on."""

from pathlib import Path
from typing import Any

import numpy as np

from engine import storage
from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.data.catalogue import Catalogue
from engine.stages.crm import make_examples
from engine.stages.histories import build_histories
from engine.stages.interactions import import_data
from engine.stages.slates import build_slates
from engine.types import Window
from tests.generated import write_recbole

TINY = {
    "embedding_dim": 4, "state_dim": 6, "hidden_dims": [8, 5], "max_behaviors": 5,
    "max_recent": 6, "batch_size": 32, "lanes": 2, "epochs": 1, "checkpoint_every": 10,
    "threads_per_worker": 1, "retrieval_negatives": 8, "max_failures": 0,
}


class World:
    """Artifacts of a generated source; item vectors are random, so no base model is needed."""

    def __init__(self, folder: Path) -> None:
        self.run = str(folder / "run")
        self.source = str(write_recbole(folder / "source"))
        config = self.config()
        self.histories = build_histories(self.run, config, import_data(self.run, config))
        self.slates = build_slates(self.run, config, self.histories)
        self.catalogue = Catalogue.from_table(
            storage.read_table(self.histories.path("items.parquet")), config.source.item_fields
        )
        vectors = np.random.default_rng(1).normal(size=(len(self.catalogue), 6))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors[0] = 0
        self.vectors = vectors.astype(np.float32)
        text = storage.join(self.run, "item_text-fixed")
        storage.write_tensors(
            storage.join(text, "vectors.safetensors"), {"vectors": self.vectors}
        )
        self.item_text = Artifact("item_text", "fixed", text, {})

    def config(self, split: dict[str, float] | None = None, **crm: Any) -> EngineConfig:
        return EngineConfig.model_validate({
            "source": {"path": self.source}, "histories": {"num_partitions": 3},
            "split": split or {}, "crm": {**TINY, **crm},
        })

    def inputs(self) -> tuple[Artifact, Artifact, Artifact]:
        return self.histories, self.slates, self.item_text

    def loop_settings(self, config: EngineConfig) -> dict[str, Any]:
        examples = make_examples(self.run, config, *self.inputs(), windows=(Window.CRM,))
        return {
            "crm": config.crm.settings(), "shape": examples.facts["shape"],
            "examples": examples.uri, "row_counts": examples.facts["row_counts"], "seed": 17,
        }
