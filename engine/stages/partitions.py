"""One Ray task for each partition number; or batches for actors that hold a model."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import ray

from engine.errors import EngineError

R = TypeVar("R")


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
) -> Iterator[dict[str, Any]]:
    """Yield the rows that `actor(*arguments)` yields for each batch, as they come, in any order.

    Each batch is one call of one of the actors, which may hold what takes long to load. Actors that
    take no GPU see none: Ray itself leaves them visible.
    """
    options: dict[str, Any] = {}
    if not use_gpu and _has_gpu():
        options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
    rows = ray.data.from_items(batches, override_num_blocks=len(batches)).flat_map(
        actor, fn_constructor_args=arguments,
        compute=ray.data.ActorPoolStrategy(size=num_actors),
        num_cpus=num_cpus, num_gpus=1 if use_gpu else 0,
        **options,
    )
    return iter(rows.iter_rows())


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
