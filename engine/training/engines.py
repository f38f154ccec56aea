"""A module and its trainable parameter groups -> a DeepSpeed engine (ZeRO stage 0 to 3).

Nothing is compiled: the optimiser is torch's AdamW, and DeepSpeed's shared-memory operator is left
out. No precision section is set: DeepSpeed leaves each parameter in its own type, so a module may
mix a frozen bfloat16 base with trainable float32 parts. Only trainable parameters reach the
optimiser.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import deepspeed
import numpy as np
import torch
from torch import nn

from engine.errors import ConfigError
from engine.types import FloatArray

Schedule = Callable[[int], float]
"""Optimiser step (from 0) -> factor of each group's peak learning rate."""


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that share a peak learning rate and a weight decay."""

    name: str
    parameters: Sequence[nn.Parameter]
    learning_rate: float
    weight_decay: float = 0.0


def linear_schedule(total_steps: int, warmup_share: float = 0.0) -> Schedule:
    """Return a linear warm-up to 1, then a linear decay that ends just above 0 at the last step."""
    warmup_steps = int(total_steps * warmup_share)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return factor


def start_engine(
    module: nn.Module,
    parameter_groups: Sequence[ParameterGroup],
    *,
    zero_stage: int,
    micro_batch: int,
    accumulation: int,
    max_grad_norm: float,
    schedule: Schedule,
) -> Any:
    """Return a DeepSpeed engine; torch.distributed must be initialised (Ray Train does it).

    `micro_batch` counts the rows of one process's forward pass. The schedule steps once for each
    optimiser step. Raises ConfigError for a group without trainable parameters.
    """
    optimizer = torch.optim.AdamW([_optimizer_group(group) for group in parameter_groups])
    settings = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": {"stage": zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    trainable = [p for group in parameter_groups for p in group.parameters if p.requires_grad]
    _leave_out_compiled_operators()
    engine, *_ = deepspeed.initialize(
        model=module, model_parameters=trainable, optimizer=optimizer, config=settings,
        lr_scheduler=lambda inner: torch.optim.lr_scheduler.LambdaLR(inner, schedule),
    )
    return engine


def _leave_out_compiled_operators() -> None:
    """Say that no operator can be compiled, before DeepSpeed asks.

    On CPUs it asks for one alone, an all-reduce in shared memory that only its inference calls, and
    would take 40 s and a C++ compiler to make it on every node.
    """
    deepspeed.ops.__compatible_ops__ = {}


def _optimizer_group(group: ParameterGroup) -> dict[str, Any]:
    trainable = [parameter for parameter in group.parameters if parameter.requires_grad]
    if not trainable:
        raise ConfigError(f"parameter group {group.name!r} has no trainable parameter")
    return {
        "name": group.name, "params": trainable, "lr": group.learning_rate,
        "weight_decay": group.weight_decay,
    }


def trainable_weights(engine: Any) -> dict[str, FloatArray]:
    """Return the trainable parameters by name as whole float32 arrays (collective, any stage)."""
    named = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    weights = {}
    for name, parameter in named:
        with deepspeed.zero.GatheredParameters([parameter], enabled=_is_sharded(parameter)):
            weights[name] = np.array(parameter.detach().float().cpu().numpy())
    return weights


def _is_sharded(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id")
