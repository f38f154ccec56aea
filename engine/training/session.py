"""What a training loop may ask of the process that runs it; no Ray here.

A loop is `loop(settings, session)`: plain values in, checkpoints out through `session.report`.
"""

import os
import shutil
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from engine.types import FloatArray


def step_seed(seed: int, step: int, world_rank: int) -> int:
    """Return the seed of one worker's dropout in one step: the same after a resume."""
    return int(np.random.SeedSequence([seed, step, world_rank]).generate_state(1)[0])


class Session(Protocol):
    """One of `world_size` processes that train together."""

    @property
    def world_rank(self) -> int:
        """Return the number of this process, from 0."""

    @property
    def world_size(self) -> int:
        """Return the number of processes."""

    def resume_folder(self) -> Path | None:
        """Return the last checkpoint as a local folder, kept while the loop runs; None if none."""

    def report(self, metrics: dict[str, float], folder: Path | None, name: str | None) -> None:
        """Record metrics and, if `folder` is given, its files as the checkpoint `name`.

        A barrier: every process calls it equally often. The files of all processes merge into one
        folder; the folder given may be deleted afterwards.
        """

    def progress(self, done: int, total: int) -> None:
        """Tell how many of all steps are done; cheap, called after every step."""


class LocalSession:
    """A session of one process that keeps its checkpoints in a folder: trials and tests.

    `<folder>/<name>/...` is a checkpoint, `<folder>/last` holds the name of the newest.
    """

    world_rank = 0
    world_size = 1

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics: list[dict[str, float]] = []

    def resume_folder(self) -> Path | None:
        """Return the newest checkpoint."""
        marker = self.folder / "last"
        return self.folder / marker.read_text() if marker.is_file() else None

    def report(self, metrics: dict[str, float], folder: Path | None, name: str | None) -> None:
        """Keep metrics in memory and copy the folder."""
        self.metrics.append(dict(metrics))
        if folder is None or name is None:
            return
        shutil.copytree(folder, self.folder / name, dirs_exist_ok=True)
        draft = self.folder / ".last"
        draft.write_text(name)
        os.replace(draft, self.folder / "last")

    def progress(self, done: int, total: int) -> None:
        """Say nothing."""


def global_sum(value: float) -> float:
    """Return the sum of a number over all processes (collective; one process needs no group)."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total)


def global_rows(values_FN: FloatArray) -> FloatArray:
    """Return the columns of all processes, first those of process 0 (collective)."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values_FN
    found: list[FloatArray] = [values_FN] * dist.get_world_size()
    dist.all_gather_object(found, values_FN)
    return np.concatenate(found, axis=1)


def share_of_global_mean(
    loss_sum: Tensor, global_count: float, *, world_size: int, accumulation: int = 1
) -> Tensor:
    """Return what this process passes to `engine.backward`.

    `loss_sum` is the sum over the labels of this process's (micro-)batch, `global_count` the labels
    of the whole global batch over all processes and accumulation steps. DeepSpeed divides by the
    accumulation steps and takes the mean of gradients over processes; this undoes both, so that
    the gradient is that of (sum over all labels) / (count of all labels) for any world size.
    """
    return loss_sum * (world_size * accumulation / global_count)
