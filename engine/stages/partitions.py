"""One Ray task for each partition number, its result back in order."""

import pickle
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from engine.errors import EngineError

R = TypeVar("R")


def map_partitions(
    function: Callable[[int], R], partitions: Sequence[int], *, num_cpus: float = 1.0
) -> list[R]:
    """Return `function(k)` of each partition, computed by Ray Data tasks, in the order given.

    The function writes its own output and returns something small. An EngineError that it raises
    arrives as itself.
    """
    if not partitions:
        return []
    numbers = ray.data.from_items(
        [{"partition": number} for number in partitions], override_num_blocks=len(partitions)
    )
    rows = collect(numbers.map(partial(_call, function), num_cpus=num_cpus))
    results = {row["partition"]: pickle.loads(row["result"]) for row in rows}
    return [results[number] for number in partitions]


def _call(function: Callable[[int], Any], row: dict[str, Any]) -> dict[str, Any]:
    number = int(row["partition"])
    return {"partition": number, "result": pickle.dumps(function(number))}


def collect(dataset: ray.data.Dataset) -> list[dict[str, Any]]:
    """Return all rows of a small dataset; an EngineError of a task is raised as itself."""
    try:
        rows: list[dict[str, Any]] = dataset.take_all()
    except RayTaskError as error:
        cause = _engine_error(error)
        if cause is None:
            raise
        raise cause from error
    return rows


def _engine_error(error: BaseException | None) -> EngineError | None:
    while error is not None:
        if isinstance(error, EngineError):
            return type(error)(*error.args) if isinstance(error, RayTaskError) else error
        error = getattr(error, "cause", None) or error.__cause__
    return None
