"""prompts + CRM states -> the meta-LoRA bank and its gates, by Ray Train and DeepSpeed.

    bank.safetensors, bank.json, curve.json
    learning.json     see `learning_curve`
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from engine import storage
from engine.artifacts import Artifact, make
from engine.config import EngineConfig
from engine.data.schema import part_name
from engine.models.base import base_model_digest, worker_dtype
from engine.stages.trainer import RESOURCES, fit, forget
from engine.training.adapter_loop import adapter_loop

log = logging.getLogger(__name__)

FILES = ("bank.safetensors", "bank.json", "curve.json")
LEARNING = "learning.json"
LEARNING_POINTS = 20
TURNED = 3.0
"""Standard errors by which the loss may rise from its lowest quarter to its last."""
VERSION = 2
"""Of what training makes of the same settings. 2: the readout learns on standardised states."""


def train_adapters(
    run: str, config: EngineConfig, prompts: Artifact, crm: Artifact, crm_scores: Artifact, *,
    seed: int | None = None,
) -> Artifact:
    """Train on the prompts of [T0, T1) under the states of the frozen, out-of-time CRM.

    `seed` stands in for `run.seed`: other initial weights and batches of the same sample.
    """
    if seed is not None:
        run_config = config.run.model_copy(update={"seed": seed})
        config = config.model_copy(update={"run": run_config})
    settings = {
        "bank": config.bank.settings(),
        "adapters": config.adapters.settings(without=RESOURCES),
        "seed": config.run.seed,
        "dtype": worker_dtype(config.base_model, use_gpu=config.adapters.use_gpu),
        "base_model": base_model_digest(config.base_model) or config.base_model.name,
    }
    write = partial(_write, config=config, prompts=prompts, crm=crm, crm_scores=crm_scores)
    bank = make(run, "bank", settings, [prompts, crm, crm_scores], write, version=VERSION)
    forget(bank.uri)
    return bank


def _write(
    folder: str, config: EngineConfig, prompts: Artifact, crm: Artifact, crm_scores: Artifact
) -> Mapping[str, Any]:
    partitions = range(config.histories.num_partitions)
    inputs = {
        "prompt_files": tuple(prompts.path(part_name("prompts", k)) for k in partitions),
        "state_files": tuple(crm_scores.path(part_name("scores", k)) for k in partitions),
        "crm_key": crm.key,
    }
    checkpoint = fit(
        adapter_loop, {"config": config.settings(), "inputs": inputs},
        artifact=folder, num_workers=config.adapters.num_workers,
        threads_per_worker=config.adapters.threads_per_worker,
        use_gpu=config.adapters.use_gpu, max_failures=config.adapters.max_failures,
    )
    for file in FILES:
        storage.copy_file(storage.join(checkpoint, file), storage.join(folder, file))
    curve = storage.read_json(storage.join(folder, "curve.json"))
    storage.write_json(storage.join(folder, LEARNING), learning_curve(curve))
    return _facts(config, folder, curve)


def read_learning(folder: str) -> list[dict[str, float]]:
    """Return the learning curve of a bank's folder; empty for one older than the file."""
    uri = storage.join(folder, LEARNING)
    points: list[dict[str, float]] = storage.read_json(uri) if storage.exists(uri) else []
    return points


def learning_curve(
    curve: Sequence[Mapping[str, float]], points: int = LEARNING_POINTS
) -> list[dict[str, float]]:
    """Return AUC against training samples: at most `points` stretches of the first epoch's steps.

    "auc" is that of pairs within a step, answered before the step was learned, so on rows new to
    the model; "labels" is how many it had learned before the middle of the stretch. Stretches
    without a pair of both labels are left out.
    """
    steps = [point for point in curve if point.get("epoch") == 0]
    labels = np.cumsum([0, *(point["labels"] for point in steps)])
    found = []
    for places in np.array_split(np.arange(len(steps)), min(points, max(1, len(steps)))):
        pairs = sum(steps[place]["pairs"] for place in places)
        if pairs:
            in_order = sum(steps[place]["pairs_in_order"] for place in places)
            middle = (labels[places[0]] + labels[places[-1] + 1]) / 2
            found.append({"labels": float(middle), "pairs": pairs, "auc": in_order / pairs})
    return found


PARTS = {"bank": ("bank",), "gate": ("user_router", "target_router"), "readout": ("readout",)}
"""What is trained, by how the names in bank.safetensors begin."""


def _facts(config: EngineConfig, folder: str, curve: list[dict[str, float]]) -> dict[str, Any]:
    tensors = storage.read_tensors(storage.join(folder, "bank.safetensors"))
    sizes = {name: int(tensor.size) for name, tensor in tensors.items()}
    lowest, last, errors = turn_of_loss([point["loss"] for point in curve])
    if errors > TURNED:
        log.warning(
            "the bank's training left what it had learned: its loss was %.3f and ended at %.3f; "
            "try lower adapters.learning_rate and adapters.gate_learning_rate", lowest, last,
        )
    ending = curve[-max(1, len(curve) // 10) :]
    return {
        "mixing": config.bank.mixing.value, "gate": config.bank.gate.value,
        "scope": config.prompt.scope.value, "steps": len(curve),
        **{f"{part}_parameters": sum(n for name, n in sizes.items() if name.split(".")[0] in names)
           for part, names in PARTS.items()},
        "training_tokens": int(sum(point["tokens"] for point in curve)),
        "final_loss": sum(point["loss"] for point in ending) / len(ending),
    }


def turn_of_loss(losses: Sequence[float]) -> tuple[float, float, float]:
    """Return the lowest mean loss of a quarter of the steps, that of the last quarter, and by how
    many standard errors the last is above it (0 for fewer than 20 steps).
    """
    quarters = np.array_split(np.asarray(losses, float), min(4, len(losses)))
    lowest, last = min(quarters, key=np.mean), quarters[-1]
    risen = float(last.mean() - lowest.mean())
    if len(losses) < 20 or risen == 0:
        return float(lowest.mean()), float(last.mean()), 0.0
    error = float(np.sqrt(lowest.var(ddof=1) / len(lowest) + last.var(ddof=1) / len(last)))
    return float(lowest.mean()), float(last.mean()), risen / max(error, 1e-12)
