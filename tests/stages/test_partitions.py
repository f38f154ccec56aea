from functools import partial

import pytest

from engine.errors import DataError
from engine.stages.partitions import map_partitions

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
