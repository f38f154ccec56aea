"""Catalogue -> one unit text vector for each item, and the projector that made it (Ray Data).

    vectors.safetensors    vectors [items + 1, D] (row 0 is zero), mean [H], components [D, H]
"""

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.data.catalogue import Catalogue
from engine.models.base import base_model_digest, worker_dtype
from engine.models.text_encoder import check_encoder, load_encoder
from engine.retrieval.item_text import fit_projector, item_text
from engine.stages.partitions import map_with_actors
from engine.stages.progress import counted

VECTORS = "vectors.safetensors"


def embed_items(run: str, config: EngineConfig, histories: Artifact) -> Artifact:
    """Return the artifact "item_text"; as many actors as the bank's training has workers.

    Raises ConfigError if the encoder cannot be had.
    """
    check_encoder(config.item_text, config.base_model)
    write = partial(_write, config=config, histories=histories)
    settings = {
        "item_text": config.item_text.settings(), "item_fields": list(config.source.item_fields),
        **_encoder_identity(config),
    }
    return artifacts.make(run, "item_text", settings, [histories], write)


def _encoder_identity(config: EngineConfig) -> dict[str, Any]:
    """Return what names the encoder's weights."""
    if config.item_text.encoder != "base_model":
        return {}
    return {
        "base_model": config.base_model.name,
        "dtype": worker_dtype(config.base_model, use_gpu=config.adapters.use_gpu),
        "digest": base_model_digest(config.base_model),
    }


def _write(uri: str, *, config: EngineConfig, histories: Artifact) -> dict[str, Any]:
    table = storage.read_table(histories.path("items.parquet"))
    raw_IH = _encode_all(Catalogue.from_table(table, config.source.item_fields), config)
    projector = fit_projector(raw_IH, config.item_text.dims)
    vectors_ID = projector.project(raw_IH)
    unknown_1D = np.zeros((1, config.item_text.dims), np.float32)
    storage.write_tensors(storage.join(uri, VECTORS), {
        "vectors": np.concatenate([unknown_1D, vectors_ID]),
        "mean": projector.mean_H, "components": projector.components_DH,
    })
    return {"items": len(vectors_ID), "dims": config.item_text.dims, "raw_dims": raw_IH.shape[1]}


def _encode_all(catalogue: Catalogue, config: EngineConfig) -> npt.NDArray[np.float32]:
    """Return the raw vectors of items 1 and up."""
    rows = [
        {"item": item, "text": item_text(catalogue.titles[item], catalogue.values_of(item))}
        for item in range(1, len(catalogue))
    ]
    rows.sort(key=lambda row: len(str(row["text"])))        # texts of a batch pad each other less
    size = config.item_text.batch_size
    batches = [{"rows": rows[start : start + size]} for start in range(0, len(rows), size)]
    encoded = map_with_actors(
        _Encoder, (config,), batches, num_actors=config.adapters.num_workers,
        num_cpus=config.adapters.threads_per_worker,
        use_gpu=config.adapters.use_gpu,
    )
    by_item = {
        int(row["item"]): row["raw"] for row in counted(encoded, len(rows), "item_text")
    }
    return np.stack([by_item[item] for item in range(1, len(catalogue))])


class _Encoder:
    """Actor: holds the encoder."""

    def __init__(self, config: EngineConfig) -> None:
        torch.set_num_threads(config.adapters.threads_per_worker)
        self._encoder = load_encoder(config.item_text, config.base_model)

    def __call__(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        raw_BH = self._encoder.encode([row["text"] for row in batch["rows"]])
        return [
            {"item": row["item"], "raw": raw_H}
            for row, raw_H in zip(batch["rows"], raw_BH, strict=True)
        ]
