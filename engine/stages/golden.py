"""The parts of a release -> golden requests and its answers to them (kind "golden").

    golden.json               as in engine/recommender/golden.py

A draft of the release is put together, loaded by an actor as a server loads it, asked, and deleted.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.models.base import worker_dtype
from engine.recommender.golden import FILE, GOLDEN, make_golden
from engine.recommender.loading import load_release
from engine.releases.registry import Registry
from engine.stages.partitions import map_with_actors

DRAFT = "draft"


def ask_golden(
    run: str, config: EngineConfig, parts: list[Artifact], files: Mapping[str, str],
    facts: Mapping[str, Any],
) -> Artifact:
    """Return the artifact "golden" of the release that these files and facts make."""
    settings = {"dtype": worker_dtype(config.base_model, use_gpu=config.adapters.use_gpu)}
    write = partial(_write, config=config, files=files, facts=facts)
    return artifacts.make(run, "golden", settings, parts, write)


def _write(
    uri: str, *, config: EngineConfig, files: Mapping[str, str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    root = storage.join(uri, DRAFT)
    try:
        Registry(root).publish(DRAFT, files, facts)
        [requests] = map_with_actors(
            _Answerer, (root, config), [{"end_s": facts["data_window"]["end_s"]}],
            num_actors=1, num_cpus=config.adapters.threads_per_worker,
            use_gpu=config.adapters.use_gpu,
        )
    finally:
        storage.delete_folder(root)
    storage.write_json(storage.join(uri, FILE), requests)
    return {"requests": len(requests)}


class _Answerer:
    """Actor: holds the draft."""

    def __init__(self, root: str, config: EngineConfig) -> None:
        torch.set_num_threads(config.adapters.threads_per_worker)
        base = config.base_model
        self._release = load_release(
            Registry(root), DRAFT, model_cache=base.cache, device=base.device
        )

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[Any]:
        """Yield the requests with their answers as JSON values."""
        yield GOLDEN.dump_python(make_golden(self._release, int(batch["end_s"])), mode="json")
