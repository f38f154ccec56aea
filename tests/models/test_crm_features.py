"""Features of requests and rows: by hand, and that nothing at or after a row is read."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.models.crm_features import (
    CRMBatch,
    CRMRows,
    FeatureSpace,
    build_rows,
    join,
    level_codes,
    num_levels,
)
from engine.models.crm_statistics import ItemStatistics, count_events
from engine.types import History
from tests import crm_world as world


def space(max_behaviors: int = 4) -> FeatureSpace:
    config = world.CRM_CONFIG.model_copy(update={"max_behaviors": max_behaviors})
    return world.maps().space(world.catalogue(), world.vectors(), config, world.SOURCE)


def rows_of(
    history: History, candidates: list[int], lengths: list[int], known: FeatureSpace | None = None
) -> CRMRows:
    known = known or space()
    codes = known.user_fields.encode_all([world.profile("u1").fields])
    return build_rows(known, 1, codes, history, np.array(candidates), np.array(lengths))


def assert_equal_batches(found: CRMBatch, expected: CRMBatch) -> None:
    for field in fields(CRMBatch):
        np.testing.assert_array_equal(
            getattr(found, field.name), getattr(expected, field.name), field.name
        )


def test_statistics_are_smoothed_toward_the_mean() -> None:
    statistics = ItemStatistics.of(np.array([[0, 0, 0], [5, 5, 25], [5, 0, 5]], float))
    assert statistics.mean_label == 0.5
    assert statistics.mean_rating == 3.0
    np.testing.assert_allclose(statistics.label_rates(), [0.5, 7.5 / 10, 2.5 / 10])
    np.testing.assert_allclose(statistics.ratings(), [3, 40 / 10, 20 / 10])


def test_events_are_counted_per_item() -> None:
    history = History(
        np.array([2, 1, 2]), np.array([5.0, 1, 4]), np.array([1, 0, 1]), np.array([1, 2, 3])
    )
    assert count_events([history], 3).tolist() == [[0, 0, 0], [1, 0, 1], [2, 2, 9]]
    parts = [history.head(1), history.tail(2), history.head(0)]
    assert count_events(parts, 3).tolist() == count_events([history], 3).tolist()
    assert count_events([], 2).tolist() == [[0, 0, 0], [0, 0, 0]]


@settings(max_examples=30)
@given(length=st.integers(0, 30), limit=st.integers(1, 20), seed=st.integers(0, 99))
def test_only_the_newest_events_count_and_older_ones_are_as_if_not_there(
    length: int, limit: int, seed: int
) -> None:
    """So an endpoint that reads `max_history` events says what was trained and examined."""
    config = world.CRM_CONFIG.model_copy(update={"max_history": limit})
    known = world.maps().space(world.catalogue(), world.vectors(), config, world.SOURCE)
    whole = world.history(length, seed)
    cut = whole.tail(limit)
    found, expected = (
        rows_of(each, [1, 2, 3], [len(each)] * 3, known).batch(np.arange(3), limit)
        for each in (whole, cut)
    )
    for field in fields(CRMBatch):
        np.testing.assert_allclose(
            getattr(found, field.name), getattr(expected, field.name), atol=1e-5,
            err_msg=field.name,
        )


def test_level_codes_tell_ratings_and_labels_apart() -> None:
    history = History(
        np.ones(4, np.int32), np.array([1, 3, 4, 5]), np.array([0, 0, 1, 1]), np.arange(4)
    )
    assert level_codes(history, world.SOURCE).tolist() == [1, 5, 8, 10]
    assert num_levels(world.SOURCE) == 11


@settings(max_examples=40)
@given(st.integers(0, 25), st.integers(0, 30), st.integers(0, 2**16))
def test_what_comes_after_a_row_changes_nothing(length: int, more: int, seed: int) -> None:
    past = world.history(length, seed)
    later = world.history(more, seed + 1)
    whole = History(*(
        np.concatenate([getattr(past, name), getattr(later, name)])
        for name in ("items", "ratings", "labels", "timestamps_s")
    ))
    candidates, lengths = [3, 5, 3], [length, length // 2, 0]
    every = np.arange(3)
    assert_equal_batches(
        rows_of(whole, candidates, lengths).batch(every, 5),
        rows_of(past, candidates, lengths).batch(every, 5),
    )


def test_features_of_a_short_history_by_hand() -> None:
    known = space(max_behaviors=2)
    history = History(
        np.array([3, 7]), np.array([5.0, 2.0]), np.array([1, 0]), np.array([10, 20])
    )
    batch = rows_of(history, [7, 9], [2, 1], known).batch(np.arange(2), 5)
    assert batch.requests_B.tolist() == [1, 0]
    assert batch.recent_items_RL.tolist() == [[3, 0], [3, 7]]
    assert batch.recent_levels_RL.tolist() == [[10, 0], [10, 3]]
    assert batch.behavior_items_BS.tolist() == [[3, 7], [3, 0]]
    ratings = known.statistics.ratings()
    np.testing.assert_allclose(
        batch.recent_residuals_RL2[1, :, 0], [(5 - ratings[3]) / 2, (2 - ratings[7]) / 2], rtol=1e-5
    )
    assert batch.dense_BF[:, -1].tolist() == [1, 0]                   # item 7 was had before
    np.testing.assert_allclose(batch.dense_RF[:, 0], np.log1p([1, 2]) / 3 - 1, rtol=1e-6)


def test_an_item_that_training_never_saw_has_the_unknown_id_but_its_own_text() -> None:
    maps = world.maps()
    fewer = replace(maps, item_ids=maps.item_ids[:-1], counts_K3=maps.counts_K3[:-1])
    table = fewer.space(world.catalogue(), world.vectors(), world.CRM_CONFIG, world.SOURCE).items
    cold = int(maps.item_ids[-1][1:])
    assert table.rows_I[cold] == 0
    np.testing.assert_array_equal(table.text_IT[cold], world.vectors()[cold])
    np.testing.assert_allclose(table.dense_I3[cold, :2], 0, atol=1e-9)


def test_joined_users_keep_their_features() -> None:
    parts = [rows_of(world.history(length, 4), [1, 2, 8], [length, 1, length])
             for length in (6, 1, 12)]
    whole = join(parts)
    for place, part in enumerate(parts):
        picked = np.arange(3)
        found = whole.batch(picked + 3 * place, 5)
        assert_equal_batches(found, part.batch(picked, 5))


def test_rows_of_one_prefix_share_a_request() -> None:
    rows = rows_of(world.history(6, 4), [1, 2, 3, 4], [6, 2, 6, 2])
    assert len(rows.users_R) == 2
    batch = rows.batch(np.array([0, 2]), 5)
    assert len(batch.users_R) == 1
    assert batch.requests_B.tolist() == [0, 0]


@pytest.mark.parametrize("length", [0, 1])
def test_empty_and_short_histories_are_finite(length: int) -> None:
    batch = rows_of(world.history(length, 2), [1], [length]).batch(np.arange(1), 5)
    for field in fields(CRMBatch):
        assert np.isfinite(getattr(batch, field.name)).all(), field.name
