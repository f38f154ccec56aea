"""Fusion against an exhaustive search and by construction."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ArtifactError, DataError
from engine.metrics.ctr import auc, log_loss, probabilities
from engine.models.fusion import Calibration, Fusion, fit_weights


def draw(seed: int, rows: int, crm: float, llm: float, bias: float = 0.0):
    """Return scores and labels of a true logit crm * first + llm * second + bias."""
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=rows), rng.normal(scale=3.0, size=rows) + 5
    chance = probabilities(crm * first + llm * second + bias)
    return first, second, (rng.random(rows) < chance).astype(np.int8)


def test_known_weights_are_recovered():
    crm, llm, labels = draw(0, 60_000, 0.8, 0.3, -1.5)
    fusion = Fusion.fit(crm, llm, labels)
    assert fusion.crm_weight == pytest.approx(0.8, abs=0.03)
    assert fusion.llm_weight == pytest.approx(0.3, abs=0.02)
    assert fusion.bias == pytest.approx(-1.5, abs=0.08)


def test_a_score_without_information_gets_about_no_weight():
    crm, llm, labels = draw(1, 60_000, 1.0, 0.0)
    assert Fusion.fit(crm, llm, labels).llm_weight == pytest.approx(0, abs=0.01)


def test_a_score_that_would_be_subtracted_gets_no_weight():
    crm, llm, labels = draw(2, 5_000, 1.0, -0.5, 2.5)
    fusion = Fusion.fit(crm, llm, labels)
    assert fusion.llm_weight == 0
    assert fusion.crm_weight > 0
    assert fusion.combine(crm, llm) == pytest.approx(fusion.crm.apply(crm), abs=1e-6)


def test_two_scores_that_mislead_leave_the_base_rate():
    crm, llm, labels = draw(3, 5_000, -1.0, -0.5, 3.0)
    weights, bias = fit_weights([crm, llm], labels)
    assert weights == [0, 0]
    assert probabilities(np.array(bias)) == pytest.approx(labels.mean())


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(-2, 2), st.floats(-1, 1), st.floats(0.2, 5))
def test_fusion_is_never_worse_than_the_crm_on_its_own_rows(seed, crm_true, llm_true, scale):
    crm, llm, labels = draw(seed, 120, crm_true, llm_true)
    if len(np.unique(labels)) < 2:
        return
    fusion = Fusion.fit(crm * scale, llm, labels)
    fused = log_loss(labels, fusion.combine(crm * scale, llm))
    calibrated = log_loss(labels, fusion.crm.apply(crm * scale))
    assert fused <= calibrated + 1e-9
    assert calibrated <= log_loss(labels, crm * scale) + 1e-9
    assert min(fusion.crm_weight, fusion.llm_weight, fusion.crm.slope) >= 0


def test_weights_are_the_best_of_a_grid():
    crm, llm, labels = draw(4, 400, 0.5, 0.2, -1)
    (first, second), bias = fit_weights([crm, llm], labels)
    best = log_loss(labels, first * crm + second * llm + bias)
    for a in np.linspace(-0.3, 0.3, 7):
        for b in np.linspace(-0.3, 0.3, 7):
            for c in np.linspace(-0.5, 0.5, 5):
                tried = (first + a) * crm + (second + b) * llm + bias + c
                assert best <= log_loss(labels, tried) + 1e-9


def test_calibration_keeps_the_order_and_mends_the_scale():
    crm, _, labels = draw(5, 20_000, 1.0, 0.0)
    calibration = Calibration.fit(4 * crm + 3, labels)
    assert calibration.slope == pytest.approx(0.25, abs=0.01)
    assert auc(labels, calibration.apply(4 * crm + 3)) == pytest.approx(auc(labels, crm))


def test_perfectly_separated_rows_give_finite_weights():
    crm = np.array([-2.0, -1.0, 1.0, 2.0])
    fusion = Fusion.fit(crm, np.zeros(4), np.array([0, 0, 1, 1]))
    assert np.isfinite([fusion.crm_weight, fusion.llm_weight, fusion.bias]).all()
    assert fusion.llm_weight == 0


def test_one_label_is_refused():
    with pytest.raises(DataError, match="both labels"):
        Fusion.fit(np.zeros(3), np.zeros(3), np.ones(3, np.int8))


def test_nan_is_refused():
    with pytest.raises(DataError, match="NaN"):
        Fusion.fit(np.array([0.0, np.nan]), np.zeros(2), np.array([0, 1]))


def test_a_fusion_survives_json_and_pickle():
    crm, llm, labels = draw(6, 300, 1.0, 0.3, -1.5)
    fusion = Fusion.fit(crm, llm, labels, popularity=crm)
    assert Fusion.from_json(json.loads(json.dumps(fusion.to_json()))) == fusion
    assert Fusion.from_json({**fusion.to_json(), "validation": {}}) == fusion
    assert pickle.loads(pickle.dumps(fusion)) == fusion


def test_an_unknown_format_is_refused_by_name():
    crm, llm, labels = draw(6, 300, 1.0, 0.3, -1.5)
    value = {**Fusion.fit(crm, llm, labels).to_json(), "format_version": 9}
    with pytest.raises(ArtifactError, match="format 9"):
        Fusion.from_json(value)
