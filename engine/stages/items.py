"""Catalogue -> one unit text vector for each item, and the projector that made it (Ray Data).

    vectors.safetensors    vectors [items + 1, D] (row 0 is zero), mean [H], components [D, H]

A night encodes what is new or has another text, and projects it as its parent did.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.data.catalogue import Catalogue
from engine.errors import ArtifactError, ConfigError
from engine.models.base import base_model_digest, worker_dtype
from engine.models.text_encoder import check_encoder, load_encoder
from engine.retrieval.item_text import Projector, fit_projector, item_text
from engine.stages.partitions import map_with_actors
from engine.stages.progress import counted

VECTORS = "vectors.safetensors"


def embed_items(run: str, config: EngineConfig, histories: Artifact) -> Artifact:
    """Return the artifact "item_text"; as many actors as the bank's training has workers.

    Raises ConfigError if the encoder cannot be had.
    """
    check_encoder(config.item_text, config.base_model)
    write = partial(_write, config=config, histories=histories)
    return artifacts.make(run, "item_text", _settings(config), [histories], write)


def extend_item_text(
    run: str, config: EngineConfig, parent_item_text: Artifact, parent_histories: Artifact,
    histories: Artifact,
) -> Artifact:
    """Return the artifact "item_text" of histories that extend others, by the parent's projector.

    Items whose text is as it was keep their vector; without any other, no encoder is loaded. Raises
    ConfigError if the encoder is another or cannot be had, ArtifactError if the parents do not
    belong together.
    """
    settings = _settings(config)
    parent_settings = parent_item_text.manifest()["settings"]
    if _space(settings) != _space(parent_settings):
        raise ConfigError(
            f"the item vectors of {parent_item_text.uri} are of {_space(parent_settings)}, "
            f"item_text and source ask for {_space(settings)}"
        )
    write = partial(
        _write_extended, config=config, parent=parent_item_text,
        before=_read_catalogue(parent_histories, config), histories=histories,
    )
    inputs = [parent_item_text, parent_histories, histories]
    return artifacts.make(run, "item_text", settings, inputs, write)


def _settings(config: EngineConfig) -> dict[str, Any]:
    return {
        "item_text": config.item_text.settings(), "item_fields": list(config.source.item_fields),
        **_encoder_identity(config),
    }


def _space(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what two sets of vectors must share to be of one space."""
    text = settings["item_text"]
    return {
        **{name: text[name] for name in ("encoder", "encoder_path", "dims")},
        "item_fields": settings["item_fields"],
        "model": settings.get("digest") or settings.get("base_model"),
    }


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
    raw_IH = _encode_all(_read_catalogue(histories, config), config)
    projector = fit_projector(raw_IH, config.item_text.dims)
    vectors_ID = projector.project(raw_IH)
    unknown_1D = np.zeros((1, config.item_text.dims), np.float32)
    storage.write_tensors(storage.join(uri, VECTORS), {
        "vectors": np.concatenate([unknown_1D, vectors_ID]),
        "mean": projector.mean_H, "components": projector.components_DH,
    })
    return {"items": len(vectors_ID), "dims": config.item_text.dims, "raw_dims": raw_IH.shape[1]}


def _write_extended(
    uri: str, *, config: EngineConfig, parent: Artifact, before: Catalogue, histories: Artifact
) -> dict[str, Any]:
    catalogue = _read_catalogue(histories, config)
    tensors = storage.read_tensors(parent.path(VECTORS))
    known = catalogue.item_ids[: len(before)]
    if len(tensors["vectors"]) != len(before) or known != before.item_ids:
        raise ArtifactError(
            f"{parent.uri} has {len(tensors['vectors']) - 1} vectors; they are not of the first "
            f"items of {histories.uri}"
        )
    added = len(catalogue) - len(before)
    vectors_ID = np.pad(tensors["vectors"], ((0, added), (0, 0)))
    changed = [
        item for item in range(1, len(catalogue))
        if item >= len(before) or _text(catalogue, item) != _text(before, item)
    ]
    if changed:
        check_encoder(config.item_text, config.base_model)
        projector = Projector(tensors["mean"], tensors["components"])
        vectors_ID[changed] = projector.project(_encode_all(catalogue.take(changed), config))
    storage.write_tensors(storage.join(uri, VECTORS), {**tensors, "vectors": vectors_ID})
    return {
        "items": len(vectors_ID) - 1, "dims": config.item_text.dims,
        "raw_dims": len(tensors["mean"]), "encoded": len(changed),
    }


def _read_catalogue(histories: Artifact, config: EngineConfig) -> Catalogue:
    table = storage.read_table(histories.path("items.parquet"))
    return Catalogue.from_table(table, config.source.item_fields)


def _text(catalogue: Catalogue, item: int) -> str:
    return item_text(catalogue.titles[item], catalogue.values_of(item))


def _encode_all(catalogue: Catalogue, config: EngineConfig) -> npt.NDArray[np.float32]:
    """Return the raw vectors of items 1 and up."""
    rows = [
        {"item": item, "text": _text(catalogue, item)} for item in range(1, len(catalogue))
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
