"""One Ray task for each partition number, its result back in order."""

import pickle
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import ray

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
    rows = numbers.map(partial(_call, function), num_cpus=num_cpus).take_all()
    results = {row["partition"]: pickle.loads(row["result"]) for row in rows}
    for number in partitions:
        if isinstance(results[number], EngineError):
            raise results[number]
    return [results[number] for number in partitions]


def _call(function: Callable[[int], Any], row: dict[str, Any]) -> dict[str, Any]:
    """Return the result or, as Ray Data loses the class of an exception, the EngineError."""
    number = int(row["partition"])
    try:
        result = function(number)
    except EngineError as error:
        result = error
    return {"partition": number, "result": pickle.dumps(result)}
