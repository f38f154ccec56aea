"""A tiny DeepSpeed loop through Ray Train: world sizes, ZeRO stages, kill -9, resume."""

import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import pytest
import torch
from torch import nn

from engine import storage
from engine.stages.trainer import fit
from engine.training.checkpoints import checkpoint_name, load_state, save_state
from engine.training.engines import (
    ParameterGroup,
    linear_schedule,
    start_engine,
    trainable_weights,
)
from engine.training.session import Session, global_sum, share_of_global_mean

STEPS = 6
ROWS = 8


class Mixed(nn.Module):
    """A frozen bfloat16 layer under a trainable float32 one, as a base model under adapters."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.base = nn.Linear(3, 5).to(torch.bfloat16).requires_grad_(False)
        self.head = nn.Linear(5, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x_BI: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.base(x_BI.bfloat16()).float())).squeeze(-1)


def global_batch(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    x = torch.randn(ROWS, 3, generator=generator)
    counted = (torch.arange(ROWS) % 3 != step % 3).float()      # ranks hold unequal label counts
    return x, x.sum(1), counted


def tiny_loop(settings: dict[str, Any], session: Session) -> None:
    module = Mixed()
    groups = [
        ParameterGroup("weight", [module.head.weight], 0.05, 0.1),
        ParameterGroup("bias", [module.head.bias], 0.1),
    ]
    engine = start_engine(
        module, groups, zero_stage=settings["zero_stage"], micro_batch=ROWS // session.world_size,
        accumulation=1, max_grad_norm=1.0, schedule=linear_schedule(STEPS, 0.2),
    )
    assert deepspeed.comm.comm.cdb.shm_comm_op is None      # else a compiler ran
    losses: list[float] = []
    folder = session.resume_folder()
    if folder is not None:
        losses = load_state(engine, folder, session)["losses"]
    for step in range(len(losses), STEPS):
        x, y, counted = (t[session.world_rank :: session.world_size] for t in global_batch(step))
        loss_sum = ((engine(x) - y) ** 2 * counted).sum()
        count = global_sum(float(counted.sum()))
        engine.backward(share_of_global_mean(loss_sum, count, world_size=session.world_size))
        engine.step()
        losses.append(global_sum(float(loss_sum.detach())) / count)
        with tempfile.TemporaryDirectory() as draft:
            save_state(engine, Path(draft), session, step + 1, losses=losses)
            weights = trainable_weights(engine)
            if session.world_rank == 0:
                storage.write_json(f"{draft}/losses.json", losses)
                storage.write_tensors(f"{draft}/weights.safetensors", weights)
            session.report({"tiny/loss": losses[-1]}, Path(draft), checkpoint_name(step + 1))
        _die_once(settings.get("flag"), session, step)


def _die_once(flag: str | None, session: Session, step: int) -> None:
    if flag and step == 2 and session.world_rank == 0 and not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def run(root: str, name: str, **overrides: Any) -> str:
    options: dict[str, Any] = {
        "num_workers": 1, "threads_per_worker": 1, "use_gpu": False, "max_failures": 0,
    }
    settings: dict[str, Any] = {"zero_stage": 0}
    for key, value in overrides.items():
        (options if key in options else settings)[key] = value
    return fit(tiny_loop, settings, storage=root, name=name, **options)


def losses_of(checkpoint: str) -> list[float]:
    return list(storage.read_json(storage.join(checkpoint, "losses.json")))


@pytest.fixture(scope="module")
def reference(ray_local: object, tmp_path_factory: pytest.TempPathFactory) -> str:
    return run(str(tmp_path_factory.mktemp("train")), "reference")


@pytest.mark.slow
def test_two_workers_one_of_them_killed_learn_what_one_learns_uninterrupted(
    reference: str, tmp_path: Path
) -> None:
    """ZeRO 0 against 2; 1 and 3 are in the tests of the CRM and of the bank."""
    flag = tmp_path / "died"
    checkpoint = run(
        str(tmp_path), "killed", num_workers=2, zero_stage=2, flag=str(flag), max_failures=1
    )
    assert flag.exists()
    np.testing.assert_allclose(losses_of(checkpoint), losses_of(reference), rtol=1e-5)
    found, expected = (
        storage.read_tensors(storage.join(uri, "weights.safetensors"))
        for uri in (checkpoint, reference)
    )
    assert set(found) == {"head.weight", "head.bias"}
    for name, weight in expected.items():
        np.testing.assert_allclose(found[name], weight, rtol=1e-4, atol=1e-6)


def test_the_same_name_again_trains_nothing_and_returns_the_same_checkpoint(
    reference: str,
) -> None:
    root, _, name = reference.rpartition("/")[0].rpartition("/")
    before = losses_of(reference)
    assert run(root, name) == reference
    assert losses_of(reference) == before
