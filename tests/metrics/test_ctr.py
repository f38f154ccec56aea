"""Metrics against scikit-learn, slow references and examples by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from engine.errors import DataError
from engine.metrics import ctr
from engine.metrics.ctr import Rows
from engine.metrics.estimates import Estimate, differences, draw_users


def sample(seed: int, rows: int = 200, users: int = 12, ties: bool = True):
    rng = np.random.default_rng(seed)
    codes = np.concatenate([np.arange(users), rng.integers(users, size=rows - users)])
    labels = rng.integers(2, size=rows)
    logits = rng.normal(size=rows) + 0.7 * labels
    slates = 3 * codes + np.arange(rows) % 3
    return Rows.of(codes, labels, slates), np.round(logits, 1) if ties else logits


def test_auc_counts_ordered_pairs_and_half_of_the_ties():
    labels, logits = np.array([1, 0, 1, 0]), np.array([2.0, 1.0, 1.0, -3.0])
    assert ctr.auc(labels, logits) == (1 + 1 + 0.5 + 1) / 4


def test_auc_of_one_label_is_nan_and_has_no_interval():
    rows = Rows.of(np.array([0, 0, 1]), np.array([1, 1, 1]))
    measured = ctr.measure(rows, np.zeros(3), num_draws=100, seed=1)
    assert np.isnan(ctr.auc(rows.labels_N, np.zeros(3)))
    assert measured["auc"].interval() is None
    assert measured["log_loss"].interval() is not None


def test_nan_logits_are_refused():
    rows = Rows.of(np.array([0, 1]), np.array([0, 1]))
    with pytest.raises(DataError, match="1 of 2"):
        ctr.measure(rows, np.array([0.0, np.nan]), num_draws=100, seed=1)


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_point_metrics_equal_scikit_learn(seed, ties):
    rows, logits = sample(seed, ties=ties)
    chance = ctr.probabilities(logits)
    measured = ctr.measure(rows, logits, num_draws=100, seed=0)
    assert measured["auc"].value == pytest.approx(reference.roc_auc_score(rows.labels_N, logits))
    assert measured["log_loss"].value == pytest.approx(reference.log_loss(rows.labels_N, chance))
    right = reference.accuracy_score(rows.labels_N, chance >= 0.5)
    assert measured["accuracy"].value == pytest.approx(right)


def test_measured_values_equal_the_plain_functions():
    rows, logits = sample(7)
    measured = ctr.measure(rows, logits, num_draws=100, seed=0)
    plain = {
        "slate_gauc": ctr.gauc(Rows.of(rows.slates_N, rows.labels_N), logits),
        "auc": ctr.auc(rows.labels_N, logits),
        "gauc": ctr.gauc(rows, logits),
        "gauc_mean": ctr.gauc(rows, logits, weighted=False),
        "log_loss": ctr.log_loss(rows.labels_N, logits),
        "accuracy": ctr.accuracy(rows.labels_N, logits),
        "ece": ctr.calibration_error(rows.labels_N, logits),
    }
    assert {name: measured[name].value for name in ctr.METRICS} == pytest.approx(plain)


def test_user_aucs_equal_scikit_learn_user_by_user():
    rows, logits = sample(3, rows=80, users=15)
    for user, value in enumerate(ctr.user_aucs(rows, logits)):
        mine = rows.users_N == user
        if len(np.unique(rows.labels_N[mine])) < 2:
            assert np.isnan(value)
        else:
            expected = reference.roc_auc_score(rows.labels_N[mine], logits[mine])
            assert value == pytest.approx(expected)


def test_gauc_weighs_users_by_their_rows_and_leaves_out_users_of_one_label():
    users = np.array([0, 0, 1, 1, 1, 1, 2, 2])
    labels = np.array([1, 0, 1, 0, 0, 0, 1, 1])
    logits = np.array([1.0, 0.0, -1.0, 0.0, 0.0, -2.0, 5.0, 5.0])      # AUC 1, 1/3, none
    rows = Rows.of(users, labels)
    assert ctr.gauc(rows, logits) == pytest.approx((2 * 1 + 4 / 3) / 6)
    assert ctr.gauc(rows, logits, weighted=False) == pytest.approx((1 + 1 / 3) / 2)


def test_within_a_slate_a_generous_moment_is_worth_nothing():
    users, slates = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 2, 2])
    labels = np.array([1, 1, 1, 0, 0, 1])
    rows = Rows.of(users, labels, slates)
    logits = np.array([9.0, 9.0, 0.1, 0.2, -5.0, -4.0])     # knows the moment, not the items
    measured = ctr.measure(rows, logits, num_draws=10, seed=0)
    assert measured["gauc"].value == pytest.approx((4 * 2 / 3 + 2 * 1) / 6)
    assert measured["slate_gauc"].value == pytest.approx((2 * 0 + 2 * 1) / 4)
    later = ctr.measure(rows, logits + 3.0 * (slates == 1), num_draws=10, seed=0)
    assert later["slate_gauc"].value == measured["slate_gauc"].value
    assert ctr.measure(Rows.of(users, labels), logits, num_draws=10, seed=0)[
        "slate_gauc"].interval() is None


def test_log_loss_stays_finite_at_huge_logits():
    assert ctr.log_loss(np.array([1, 0]), np.array([-1e4, -1e4])) == pytest.approx(5e3)


def test_calibration_error_of_an_example_by_hand():
    labels = np.array([1, 0, 1, 1])
    logits = np.log(np.array([0.25, 0.25, 0.8, 0.8]) / np.array([0.75, 0.75, 0.2, 0.2]))
    expected = 0.5 * abs(0.25 - 0.5) + 0.5 * abs(0.8 - 1.0)
    assert ctr.calibration_error(labels, logits, num_bins=2) == pytest.approx(expected)
    low, high = ctr.reliability(labels, logits, num_bins=2)
    assert (low.mean_probability, low.positive_rate, low.num_rows) == pytest.approx((0.25, 0.5, 2))
    assert (high.mean_probability, high.positive_rate) == pytest.approx((0.8, 1.0))


def test_draws_equal_measuring_the_resampled_rows_one_by_one():
    rows, logits = sample(5, rows=90, users=9)
    measured = ctr.measure(rows, logits, num_draws=20, seed=4)
    counts_DU = np.concatenate(list(draw_users(9, 20, 4, chunk=20))).astype(int)
    raw_errors = []
    for draw, counts_U in enumerate(counts_DU):
        again = np.concatenate([
            np.tile(np.flatnonzero(rows.users_N == user), times)
            for user, times in enumerate(counts_U)
        ])
        labels, scores = rows.labels_N[again], logits[again]
        assert measured["auc"].draws_D[draw] == pytest.approx(ctr.auc(labels, scores))
        assert measured["log_loss"].draws_D[draw] == pytest.approx(ctr.log_loss(labels, scores))
        raw_errors.append(ctr.calibration_error(labels, scores))
        aucs = ctr.user_aucs(rows, logits)
        weights = counts_U * np.bincount(rows.users_N) * ~np.isnan(aucs)
        assert measured["gauc"].draws_D[draw] == pytest.approx(
            np.average(np.nan_to_num(aucs), weights=weights)
        )
    excess = np.mean(raw_errors) - measured["ece"].value
    assert excess > 0
    assert measured["ece"].draws_D == pytest.approx(np.maximum(0, np.array(raw_errors) - excess))


def test_weighted_auc_equals_scikit_learn_with_sample_weights():
    rows, logits = sample(11, rows=300, users=20)
    weights_DU = next(draw_users(20, 5, 2, chunk=5))
    found = ctr.WeightedAUC(rows, logits)(weights_DU)
    for weights_U, value in zip(weights_DU, found, strict=True):
        expected = reference.roc_auc_score(
            rows.labels_N, logits, sample_weight=weights_U[rows.users_N]
        )
        assert value == pytest.approx(expected)


def test_draws_do_not_depend_on_the_chunk():
    whole = np.concatenate(list(draw_users(13, 30, 8, chunk=30)))
    parts = np.concatenate(list(draw_users(13, 30, 8, chunk=7)))
    assert np.array_equal(whole, parts)
    assert (whole.sum(axis=1) == 13).all()


def test_a_model_differs_from_itself_by_exactly_zero():
    rows, logits = sample(2)
    first = ctr.measure(rows, logits, num_draws=100, seed=3)
    second = ctr.measure(rows, logits, num_draws=100, seed=3)
    for interval in differences(first, second).values():
        assert interval is not None
        assert (interval.value, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_a_paired_interval_is_narrower_than_unpaired_ones():
    rng = np.random.default_rng(0)
    rows, logits = sample(6, rows=600, users=40, ties=False)
    close = logits + rng.normal(scale=0.05, size=len(logits))
    first = ctr.measure(rows, logits, num_draws=500, seed=3)["auc"]
    second = ctr.measure(rows, close, num_draws=500, seed=3)["auc"]
    paired, alone = first.minus(second).interval(), first.interval()
    assert paired is not None
    assert alone is not None
    assert paired.high - paired.low < 0.3 * (alone.high - alone.low)


def test_intervals_cover_the_truth_at_about_their_rate():
    """Users whose rows agree: resampling rows instead would cover far less."""
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        labels = np.repeat(rng.integers(2, size=40), 10)
        rows = Rows.of(np.repeat(np.arange(40), 10), labels)
        interval = ctr.measure(
            rows, np.full(400, 2.0), num_draws=300, seed=seed
        )["accuracy"].interval()
        assert interval is not None
        covered += interval.low <= 0.5 <= interval.high
    assert 85 <= covered <= 100


def test_interval_leaves_out_draws_without_a_value():
    draws = np.array([np.nan, 0.4, 0.6, np.nan])
    interval = Estimate(0.5, draws).interval()
    assert interval is not None
    assert 0.4 <= interval.low < interval.high <= 0.6
    assert Estimate(0.5, np.full(4, np.nan)).interval() is None


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 5), st.floats(-3, 3))
def test_auc_is_free_of_row_order_and_of_increasing_maps(seed, slope, shift):
    rows, logits = sample(seed, rows=60, users=5)
    order = np.random.default_rng(seed).permutation(60)
    mixed = Rows.of(rows.users_N[order], rows.labels_N[order], rows.slates_N[order])
    one = ctr.measure(rows, logits, num_draws=10, seed=1)
    two = ctr.measure(mixed, (logits * slope + shift)[order], num_draws=10, seed=1)
    for name in ("auc", "gauc", "gauc_mean", "slate_gauc"):
        assert one[name].value == pytest.approx(two[name].value, nan_ok=True)
        assert one[name].draws_D == pytest.approx(two[name].draws_D, nan_ok=True)


def test_rows_take_user_ids_as_text():
    rows = Rows.of(np.array(["b", "a", "b"]), np.array([1, 0, 1]))
    assert rows.users_N.tolist() == [1, 0, 1]
    assert rows.num_users == 2
