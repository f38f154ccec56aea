"""One Ray task for each partition number; or batches for actors that hold a model."""

import logging
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import ray

from engine.errors import EngineError

log = logging.getLogger(__name__)

R = TypeVar("R")

PATIENCE_S = 10.0
"""How long resources of the stage before may take to be free again."""


def map_partitions(function: Callable[[int], R], partitions: Sequence[int]) -> list[R]:
    """Return `function(k)` of each partition, computed by Ray Data tasks, in the order given.

    The function writes its own output and returns something small. An EngineError that it raises
    arrives as itself.
    """
    if not partitions:
        return []
    numbers = ray.data.from_items(
        [{"partition": number} for number in partitions], override_num_blocks=len(partitions)
    )
    rows = numbers.map(partial(_call, function), num_cpus=1).take_all()
    results = {row["partition"]: pickle.loads(row["result"]) for row in rows}
    for number in partitions:
        if isinstance(results[number], EngineError):
            raise results[number]
    return [results[number] for number in partitions]


def takes_gpu(device: str) -> bool:
    """Return whether actors for a device take a GPU; `auto`: if the cluster has one."""
    return device.startswith("cuda") or (device == "auto" and _has_gpu())


def map_with_actors(
    actor: type, arguments: tuple[Any, ...], batches: list[dict[str, Any]], *,
    num_actors: int, num_cpus: float, use_gpu: bool,
) -> Iterator[Any]:
    """Yield the rows that `actor(*arguments)` yields for each batch, as they come, in any order.

    Each batch is one call of one of the actors, which may hold what takes long to load. Actors that
    take no GPU see none: Ray itself leaves them visible. An EngineError arrives as itself.
    """
    options: dict[str, Any] = {}
    if not use_gpu and _has_gpu():
        options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
    _tell_of_a_wait(num_cpus, use_gpu)
    rows = ray.data.from_items(batches, override_num_blocks=len(batches)).flat_map(
        _Actor, fn_constructor_args=(actor, arguments),
        compute=ray.data.ActorPoolStrategy(size=min(num_actors, len(batches))),
        num_cpus=num_cpus, num_gpus=1 if use_gpu else 0,
        **options,
    )
    for row in rows.iter_rows():
        result = pickle.loads(row["result"])
        if isinstance(result, EngineError):
            raise result
        yield result


class _Actor:
    """An actor whose EngineErrors are rows: Ray Data loses the class of an exception."""

    def __init__(self, actor: type, arguments: tuple[Any, ...]) -> None:
        self._error: EngineError | None = None
        try:
            self._actor = actor(*arguments)
        except EngineError as error:
            self._error = error

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, bytes]]:
        """Yield the actor's rows as bytes, or its error."""
        if self._error is not None:
            yield {"result": pickle.dumps(self._error)}
            return
        try:
            for row in self._actor(batch):
                yield {"result": pickle.dumps(row)}
        except EngineError as error:
            yield {"result": pickle.dumps(error)}


def _tell_of_a_wait(num_cpus: float, use_gpu: bool) -> None:
    """Log what actors will wait for if it does not become free soon: Ray waits without a word."""
    wanted = {"CPU": num_cpus, "GPU": 1.0 if use_gpu else 0.0}
    end_s = time.monotonic() + PATIENCE_S
    while True:
        free = ray.available_resources()
        lacking = [name for name, amount in wanted.items() if free.get(name, 0.0) < amount]
        if not lacking:
            return
        if time.monotonic() > end_s:
            break
        time.sleep(0.2)
    total = ray.cluster_resources()
    claims = ", ".join(
        f"{wanted[name]:g} {name} ({free.get(name, 0.0):g} free of {total.get(name, 0.0):g})"
        for name in lacking
    )
    log.warning("waiting for %s: others hold what is not free, an endpoint, a job, a stage", claims)


def _has_gpu() -> bool:
    return float(ray.cluster_resources().get("GPU", 0)) > 0


def _call(function: Callable[[int], Any], row: dict[str, Any]) -> dict[str, Any]:
    """Return the result or, as Ray Data loses the class of an exception, the EngineError."""
    number = int(row["partition"])
    try:
        result = function(number)
    except EngineError as error:
        result = error
    return {"partition": number, "result": pickle.dumps(result)}
