"""A training loop -> Ray Train workers -> the URI of the last checkpoint folder."""

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import WorkerGroupError

from engine import storage as uris
from engine.errors import ArtifactError, EngineError
from engine.stages.progress import ProgressWriter, logged_progress
from engine.training.session import Session

log = logging.getLogger(__name__)

Loop = Callable[[dict[str, Any], Session], None]

RESOURCES = frozenset({"threads_per_worker", "checkpoint_every", "max_failures"})
"""Settings of a training that do not name its output: whoever changes them goes on with it."""

FORWARDED = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION")
"""Driver's variables that workers need too; credentials belong to the nodes' own environment."""


class RaySession:
    """The session of one Ray Train worker."""

    def __init__(self, stack: ExitStack, progress: str) -> None:
        """`progress`: URI of the file that tells the driver how far the training is."""
        context = ray.train.get_context()
        self.world_rank = int(context.get_world_rank())
        self.world_size = int(context.get_world_size())
        self._stack = stack
        self._write_progress = ProgressWriter(progress)

    def resume_folder(self) -> Path | None:
        """Return the last checkpoint; one in an object store is fetched."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        return Path(self._stack.enter_context(checkpoint.as_directory()))

    def report(self, metrics: dict[str, float], folder: Path | None, name: str | None) -> None:
        """Pass metrics and checkpoint to the controller, which records them."""
        checkpoint = None if folder is None else Checkpoint.from_directory(str(folder))
        ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)

    def progress(self, done: int, total: int) -> None:
        """Let the driver log how many of all steps are done."""
        if self.world_rank == 0:
            self._write_progress(done, total)


def fit(
    loop: Loop,
    settings: dict[str, Any],
    *,
    artifact: str,
    num_workers: int,
    threads_per_worker: int,
    use_gpu: bool,
    max_failures: int,
) -> str:
    """Run `loop(settings, session)` on every worker; return the URI of the last checkpoint.

    `artifact` is the URI of the folder that is made of it. The same one goes on from its last
    checkpoint, in this call (after a failed worker) as in a later one, until `forget`. `loop` is a
    function of a module. An EngineError of a worker arrives as itself. Raises ArtifactError if the
    loop reported no checkpoint.
    """
    _warn_of_missing_cpus(num_workers * threads_per_worker)
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"      # relative paths mean the same in every worker
    storage, name = _place(artifact)
    fs, path = uris.filesystem(storage)
    progress = uris.join(storage, f"{name}-progress.json")
    trainer = TorchTrainer(
        partial(_run_worker, loop, threads_per_worker, progress),
        train_loop_config=settings,
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=use_gpu,
            resources_per_worker={"CPU": threads_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=RunConfig(      # type: ignore[call-arg]    # mypy reads the old RunConfig
            name=name, storage_path=path, storage_filesystem=fs,
            failure_config=FailureConfig(max_failures=max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": _worker_environment(threads_per_worker, use_gpu)},
        ),
    )
    with logged_progress(progress, name):
        try:
            result = trainer.fit()
        except WorkerGroupError as error:
            for failure in error.worker_failures.values():
                if isinstance(failure, EngineError):
                    raise failure from error
            raise
    if result.checkpoint is None:
        raise ArtifactError(f"training {name!r} ended without a checkpoint in {storage}")
    return _uri_of(storage, result.checkpoint.path)


def forget(artifact: str) -> None:
    """Delete what `fit` kept to go on from, once the artifact is complete: whoever makes it anew
    must not begin where other code ended.
    """
    uris.delete_folder(uris.join(*_place(artifact)))


def _place(artifact: str) -> tuple[str, str]:
    """Return the folder of a run's trainings, and the name of this one."""
    run, _, name = artifact.rstrip("/").rpartition("/")
    return uris.join(run, "training"), name


def _run_worker(loop: Loop, threads: int, progress: str, settings: dict[str, Any]) -> None:
    """Run the loop in a worker process."""
    torch.set_num_threads(threads)
    with ExitStack() as stack:
        loop(settings, RaySession(stack, progress))


def _worker_environment(threads: int, use_gpu: bool) -> dict[str, str]:
    """Return the variables of a worker process."""
    environment = {
        "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false",
        "TORCHDYNAMO_DISABLE": "1",         # DeepSpeed would import the compiler, none is used
        **{name: os.environ[name] for name in FORWARDED if name in os.environ},
    }
    if not use_gpu:
        environment["DS_ACCELERATOR"] = "cpu"
        environment["CUDA_VISIBLE_DEVICES"] = ""    # Ray leaves them visible to who asks for none
    return environment


def _warn_of_missing_cpus(needed: int) -> None:
    """Say why a training may wait: Ray itself waits for nodes that an autoscaler could add."""
    if not ray.is_initialized():
        return
    present = ray.cluster_resources().get("CPU", 0)
    free = ray.available_resources().get("CPU", 0)
    if present < needed:
        log.warning("training needs %d CPUs, the cluster has %g: it waits", needed, present)
    elif free < needed:
        log.info(
            "training needs %d CPUs (num_workers times threads_per_worker), %g of %g are free: "
            "it waits until that many are", needed, free, present,
        )


def _uri_of(storage: str, path: str) -> str:
    """Return a URI of the same kind as `storage` for a path of its file system."""
    if not uris.is_remote(storage):
        return path
    return f"{storage.partition('://')[0]}://{path}"
