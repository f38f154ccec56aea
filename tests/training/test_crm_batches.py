"""Lanes: every row once an epoch, the same batches for any number of processes."""

from dataclasses import fields

import numpy as np
import pytest

from engine.models.crm_features import CRMBatch, CRMRows, build_rows
from engine.training.crm_batches import LanePlan, LaneReader, blank_batch, merge_batches
from tests import crm_world as world

COUNTS = (7, 0, 13, 3, 5, 9)
PLAN = LanePlan(COUNTS, lanes=2, batch_size=8, seed=5)


def rows_of(partition: int) -> CRMRows:
    """Return rows whose label tells partition and place: 100 * partition + place."""
    count, history = COUNTS[partition], world.history(9, partition)
    space = world.maps().space(
        world.catalogue(), world.vectors(), world.CRM_CONFIG, world.SOURCE
    )
    codes = space.user_fields.encode_all([world.profile("u1").fields])
    return build_rows(
        space, 1, codes, history, np.arange(count) % 12 + 1, np.arange(count) % 10,
        np.arange(count) + 100 * partition,
    )


def epoch_of(epoch: int, lanes: range) -> list[list[float]]:
    """Return the labels of each step of some lanes."""
    readers = [LaneReader(PLAN, lane, rows_of) for lane in lanes]
    steps = []
    for step in range(PLAN.steps(epoch)):
        parts = [reader.batch(epoch, step, 5) for reader in readers]
        steps.append([float(label) for part in parts if part for label in part.labels_B])
    return steps


def test_every_row_comes_once_in_an_epoch() -> None:
    seen = sorted(label for step in epoch_of(0, range(2)) for label in step)
    expected = sorted(100.0 * k + row for k, count in enumerate(COUNTS) for row in range(count))
    assert seen == expected


def test_lanes_are_the_same_whether_one_process_or_two_read_them() -> None:
    together = epoch_of(1, range(2))
    apart = [epoch_of(1, range(0, 2, 2)), epoch_of(1, range(1, 2, 2))]
    assert together == [one + other for one, other in zip(*apart, strict=True)]


def test_epochs_and_seeds_have_their_own_order() -> None:
    assert epoch_of(0, range(2)) == epoch_of(0, range(2))
    assert epoch_of(0, range(2)) != epoch_of(1, range(2))
    other = LanePlan(COUNTS, lanes=2, batch_size=8, seed=6)
    assert other.order(0, [0, 2, 4]).tolist() != PLAN.order(0, [0, 2, 4]).tolist()


def test_a_batch_can_be_read_without_those_before_it() -> None:
    whole = LaneReader(PLAN, 0, rows_of)
    for step in range(3):
        expected = whole.batch(0, step, 5)
    found = LaneReader(PLAN, 0, rows_of).batch(0, 2, 5)
    assert found is not None
    assert expected is not None
    np.testing.assert_array_equal(found.labels_B, expected.labels_B)


def test_a_lane_that_is_through_gives_nothing() -> None:
    assert LaneReader(PLAN, 1, rows_of).batch(0, 99, 5) is None


def test_merged_batches_keep_their_requests() -> None:
    one, two = (rows_of(k).batch(np.arange(3), 5) for k in (0, 2))
    merged = merge_batches([one, two])
    assert len(merged.items_B) == 6
    assert merged.requests_B[3:].tolist() == (two.requests_B + len(one.users_R)).tolist()
    np.testing.assert_array_equal(merged.dense_RF[merged.requests_B[3:]],
                                  two.dense_RF[two.requests_B])


@pytest.mark.parametrize("name", [field.name for field in fields(CRMBatch)])
def test_a_blank_batch_has_the_dimensions_of_a_real_one(name: str) -> None:
    real, blank = rows_of(0).batch(np.arange(1), 5), blank_batch()
    assert getattr(blank, name).ndim == getattr(real, name).ndim
    assert not getattr(blank, name).any()
