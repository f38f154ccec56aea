"""Popularity from counts."""

import numpy as np
import pytest

from engine.errors import DataError
from engine.models.popularity import Popularity, count_events


def test_explicit_score_is_the_logit_of_the_shrunken_rate():
    popularity = Popularity.fit(
        np.array([0, 3, 1]), np.array([0, 4, 4]), smoothing=2.0, implicit=False
    )
    mean = (4 + 0.5) / (8 + 1)
    rates = (np.array([0, 3, 1]) + 2 * mean) / (np.array([0, 4, 4]) + 2)
    assert popularity.scores == pytest.approx(np.log(rates / (1 - rates)), abs=1e-6)


def test_an_unseen_item_stands_at_the_mean_and_few_events_move_little():
    few, many = [1, 2], [1000, 2000]
    popularity = Popularity.fit(
        np.array([0, few[0], many[0], 900]), np.array([0, few[1], many[1], 1000]),
        smoothing=10.0, implicit=False,
    )
    unseen, rare, common, loved = popularity.scores
    assert common < rare < unseen < loved


def test_implicit_score_grows_with_the_count():
    counts = np.array([0, 5, 1, 9])
    popularity = Popularity.fit(counts, counts, smoothing=1.0, implicit=True)
    assert np.argsort(-popularity.scores).tolist() == [3, 1, 2, 0]


def test_top_orders_by_positives_then_score_then_index_and_leaves_out_the_unknown():
    popularity = Popularity.fit(
        np.array([99, 2, 5, 2, 2]), np.array([99, 9, 9, 3, 9]), smoothing=1.0, implicit=False
    )
    assert popularity.top.tolist() == [2, 3, 1, 4]


def test_all_positive_or_no_events_still_give_finite_scores():
    for counts in (np.array([0, 4]), np.array([0, 0])):
        popularity = Popularity.fit(counts, counts, smoothing=10.0, implicit=False)
        assert np.isfinite(popularity.scores).all()


def test_more_positives_than_events_are_refused():
    with pytest.raises(DataError, match="more positives"):
        Popularity.fit(np.array([2]), np.array([1]), smoothing=1.0, implicit=False)


def test_events_at_the_cut_are_not_counted():
    positives, events = count_events(
        np.array([1, 1, 2, 1]), np.array([1, 0, 1, 1]), np.array([5, 6, 9, 10]),
        before_s=10, num_items=4,
    )
    assert positives.tolist() == [0, 1, 1, 0]
    assert events.tolist() == [0, 2, 1, 0]


def test_a_saved_popularity_reads_back(tmp_path):
    popularity = Popularity.fit(np.array([0, 2]), np.array([0, 3]), smoothing=1.0, implicit=False)
    popularity.save(str(tmp_path / "popularity.safetensors"))
    again = Popularity.load(str(tmp_path / "popularity.safetensors"))
    assert np.array_equal(again.scores, popularity.scores)
    assert np.array_equal(again.positives, popularity.positives)
    assert again.scores.dtype == np.float32
