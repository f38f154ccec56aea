"""prompts + CRM states -> the meta-LoRA bank and its gates, by Ray Train and DeepSpeed.

    bank.safetensors, bank.json, curve.json
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from engine import storage
from engine.artifacts import Artifact, make
from engine.config import EngineConfig
from engine.data.schema import part_name
from engine.models.base import base_model_digest
from engine.stages.trainer import fit
from engine.training.adapter_loop import adapter_loop

FILES = ("bank.safetensors", "bank.json", "curve.json")


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
        "bank": config.bank.settings(), "adapters": config.adapters.settings(),
        "seed": config.run.seed, "dtype": config.base_model.dtype,
        "base_model": base_model_digest(config.base_model) or config.base_model.name,
    }
    write = partial(_write, config=config, prompts=prompts, crm=crm, crm_scores=crm_scores)
    return make(run, "bank", settings, [prompts, crm, crm_scores], write)


def _write(
    folder: str, config: EngineConfig, prompts: Artifact, crm: Artifact, crm_scores: Artifact
) -> Mapping[str, Any]:
    partitions = range(config.histories.num_partitions)
    inputs = {
        "prompt_files": tuple(prompts.path(part_name("prompts", k)) for k in partitions),
        "state_files": tuple(crm_scores.path(part_name("scores", k)) for k in partitions),
        "crm_key": crm.key,
    }
    run, _, name = folder.rpartition("/")
    checkpoint = fit(
        adapter_loop, {"config": config.settings(), "inputs": inputs},
        storage=storage.join(run, "training"), name=name,
        num_workers=config.adapters.num_workers,
        threads_per_worker=config.adapters.threads_per_worker,
        use_gpu=config.adapters.use_gpu, max_failures=config.adapters.max_failures,
    )
    for file in FILES:
        storage.copy_file(storage.join(checkpoint, file), storage.join(folder, file))
    curve = storage.read_json(storage.join(folder, "curve.json"))
    return _facts(config, folder, curve)


def _facts(config: EngineConfig, folder: str, curve: list[dict[str, float]]) -> dict[str, Any]:
    tensors = storage.read_tensors(storage.join(folder, "bank.safetensors"))
    sizes = {name: int(tensor.size) for name, tensor in tensors.items()}
    last = curve[-max(1, len(curve) // 10) :]
    return {
        "mixing": config.bank.mixing.value, "gate": config.bank.gate.value,
        "scope": config.prompt.scope.value, "steps": len(curve),
        "bank_parameters": sum(n for name, n in sizes.items() if name.startswith("bank.")),
        "gate_parameters": sum(n for name, n in sizes.items() if not name.startswith("bank.")),
        "training_tokens": int(sum(point["tokens"] for point in curve)),
        "final_loss": sum(point["loss"] for point in last) / len(last),
    }
