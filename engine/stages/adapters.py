"""prompts + CRM states -> the meta-LoRA bank and its gates, by Ray Train and DeepSpeed.

    bank.safetensors, bank.json, curve.json
    readout.safetensors   what the readout's states were standardised by, for who goes on from it
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
from engine.errors import ConfigError
from engine.models.base import base_model_digest, worker_dtype
from engine.models.personalized import STANDARD
from engine.stages.trainer import RESOURCES, fit, forget
from engine.training.adapter_loop import adapter_loop
from engine.training.anchor import names_by_part, square_of

log = logging.getLogger(__name__)

BANK_FACTS = "bank.json"
FILES = ("bank.safetensors", BANK_FACTS, "curve.json")
LEARNING = "learning.json"
LEARNING_POINTS = 20
TURNED = 3.0
"""Standard errors by which the loss may rise from its lowest quarter to its last."""
VERSION = 2
"""Of what training makes of the same settings. 2: the readout learns on standardised states."""


def train_adapters(
    run: str, config: EngineConfig, prompts: Artifact, crm: Artifact, crm_scores: Artifact, *,
    seed: int | None = None, parent: Artifact | None = None,
) -> Artifact:
    """Train on the prompts of the bank window under the states of the frozen, out-of-time CRM.

    `seed` stands in for `run.seed`: other initial weights and batches of the same sample. From a
    `parent`, a bank with the files of a release, training goes on at the settings of a night.
    """
    if seed is not None:
        run_config = config.run.model_copy(update={"seed": seed})
        config = config.model_copy(update={"run": run_config})
    if parent is not None:
        config = night_settings(config)
    settings = {
        "bank": config.bank.settings(),
        "adapters": config.adapters.settings(without=RESOURCES),
        "seed": config.run.seed,
        "dtype": worker_dtype(config.base_model, use_gpu=config.adapters.use_gpu),
        "base_model": base_model_digest(config.base_model) or config.base_model.name,
    }
    sources = [prompts, crm, crm_scores]
    if parent is not None:
        settings["anchor"] = config.night.anchor
        sources.append(parent)
    write = partial(
        _write, config=config, prompts=prompts, crm=crm, crm_scores=crm_scores, parent=parent
    )
    bank = make(run, "bank", settings, sources, write, version=VERSION)
    forget(bank.uri)
    return bank


def carry_adapters(run: str, parent: Artifact, crm: Artifact) -> Artifact:
    """Return the parent's bank, to be read under the states of another CRM: its child."""
    def write(folder: str) -> Mapping[str, Any]:
        for file in parent.files():
            name = file.removeprefix(f"{parent.uri}/")
            if name != BANK_FACTS:
                storage.copy_file(file, storage.join(folder, name))
        facts = storage.read_json(parent.path(BANK_FACTS))
        storage.write_json(storage.join(folder, BANK_FACTS), {**facts, "crm_key": crm.key})
        return {**parent.facts, "steps": 0, "training_tokens": 0}

    return make(run, "bank", {"carried": True}, [crm, parent], write, version=VERSION)


def night_settings(config: EngineConfig) -> EngineConfig:
    """Return the settings of one night's bank: one pass at a share of the rates."""
    adapters, rate = config.adapters, config.night.bank_rate
    if config.night.anchor and adapters.zero_stage == 3:
        raise ConfigError(
            "night.anchor compares whole weights with the parent's and ZeRO stage 3 shares them "
            "out: adapters.zero_stage must be at most 2, or night.anchor 0"
        )
    rates = ("learning_rate", "gate_learning_rate", "readout_learning_rate")
    slower = {name: getattr(adapters, name) * rate for name in rates}
    return config.model_copy(update={
        "adapters": adapters.model_copy(update={"epochs": 1, **slower})
    })


def _write(
    folder: str, config: EngineConfig, prompts: Artifact, crm: Artifact, crm_scores: Artifact,
    parent: Artifact | None,
) -> Mapping[str, Any]:
    partitions = range(config.histories.num_partitions)
    inputs = {
        "prompt_files": tuple(prompts.path(part_name("prompts", k)) for k in partitions),
        "state_files": tuple(crm_scores.path(part_name("scores", k)) for k in partitions),
        "crm_key": crm.key, "parent": None if parent is None else parent.uri,
    }
    checkpoint = fit(
        adapter_loop, {"config": config.settings(), "inputs": inputs},
        artifact=folder, num_workers=config.adapters.num_workers,
        threads_per_worker=config.adapters.threads_per_worker,
        use_gpu=config.adapters.use_gpu, max_failures=config.adapters.max_failures,
    )
    for file in FILES:
        storage.copy_file(storage.join(checkpoint, file), storage.join(folder, file))
    if storage.exists(storage.join(checkpoint, STANDARD)):      # where there is a readout
        storage.copy_file(storage.join(checkpoint, STANDARD), storage.join(folder, STANDARD))
    curve = storage.read_json(storage.join(folder, "curve.json"))
    storage.write_json(storage.join(folder, LEARNING), learning_curve(curve))
    moved = {} if parent is None else {"moved": distance_moved(folder, parent.uri)}
    return {**_facts(config, folder, curve), **moved}


def distance_moved(folder: str, parent: str) -> dict[str, float]:
    """Return how far each part is from the parent's, in lengths of the parent's."""
    weights, start = (
        storage.read_tensors(storage.join(each, "bank.safetensors")) for each in (folder, parent)
    )
    found = {}
    for part, names in names_by_part(weights).items():
        away = sum(float(((weights[name] - start[name]) ** 2).sum()) for name in names)
        found[part] = (away / square_of([start[name] for name in names])) ** 0.5
    return found


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
