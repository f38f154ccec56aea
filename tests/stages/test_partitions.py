import logging
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import ray

from engine.errors import ConfigError, DataError
from engine.stages import partitions
from engine.stages.partitions import map_partitions, map_with_actors

pytestmark = pytest.mark.usefixtures("ray_local")


def _double(factor: int, partition: int) -> dict[int, tuple[str, int]]:
    return {partition: ("double", factor * partition)}


def _fail(partition: int) -> None:
    if partition == 2:
        raise DataError("partition 2 is bad")


def test_results_come_back_in_the_order_asked_for() -> None:
    assert map_partitions(partial(_double, 2), [3, 0, 1]) == [
        {3: ("double", 6)}, {0: ("double", 0)}, {1: ("double", 2)},
    ]
    assert map_partitions(partial(_double, 2), []) == []


def test_an_error_of_the_engine_arrives_as_itself() -> None:
    with pytest.raises(DataError, match=r"^partition 2 is bad$"):
        map_partitions(_fail, range(4))


class Doubler:
    """An actor that refuses some factors and some batches."""

    def __init__(self, factor: int) -> None:
        if factor == 0:
            raise ConfigError("factor 0 is not allowed")
        self.factor = factor

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if batch["number"] == 13:
            raise DataError("batch 13 is bad")
        yield {"result": self.factor * batch["number"], "pid": os.getpid()}
        yield {"result": None, "pid": os.getpid()}


def double(factor: int, *numbers: int) -> list[dict[str, Any]]:
    batches = [{"number": number} for number in numbers]
    return list(map_with_actors(
        Doubler, (factor,), batches, num_actors=2, num_cpus=1, use_gpu=False
    ))


def test_rows_of_actors_arrive_whatever_they_hold() -> None:
    rows = double(3, 1, 2, 4)
    assert sorted(row["result"] for row in rows if row["result"]) == [3, 6, 12]
    assert sum(row["result"] is None for row in rows) == 3
    assert os.getpid() not in {row["pid"] for row in rows}


@pytest.mark.parametrize(("factor", "number", "error", "message"), [
    (0, 1, ConfigError, r"^factor 0 is not allowed$"), (2, 13, DataError, r"^batch 13 is bad$"),
])
def test_an_error_of_an_actor_arrives_as_itself(
    factor: int, number: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        double(factor, number)


def test_what_actors_wait_for_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(partitions, "PATIENCE_S", 0.3)
    with caplog.at_level(logging.WARNING):
        partitions._tell_of_a_wait(1, use_gpu=False)
        assert not caplog.records
        monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 0.5})
        partitions._tell_of_a_wait(1, use_gpu=True)
    assert "waiting for 1 CPU (0.5 free of 3), 1 GPU (0 free of 0)" in caplog.text
