"""Fusion: CRM and LLM logits -> one calibrated logit; fitted on validation, kept as fusion.json.

    full      crm_weight * crm_logit + llm_weight * llm_logit + bias
    crm       slope * crm_logit + bias         (no LLM score: the same scale of probability)
    popular   slope * popularity + bias

Weights are never negative: a score that would be subtracted gets weight 0 instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.errors import ArtifactError, DataError
from engine.metrics.ctr import log_loss
from engine.metrics.estimates import check_finite
from engine.types import FloatArray, IntArray

FORMAT_VERSION = 1
_INVERSE_PENALTY = 1e6      # sklearn's C on standardised inputs: in effect no regularisation


@dataclass(frozen=True, slots=True)
class Calibration:
    """One score as a probability: slope * score + bias is its logit."""

    slope: float
    bias: float

    def apply(self, scores: FloatArray) -> FloatArray:
        """Return calibrated logits."""
        values: FloatArray = self.slope * np.asarray(scores, np.float64) + self.bias
        return values

    @staticmethod
    def fit(scores: FloatArray, labels: IntArray) -> "Calibration":
        """Fit slope >= 0 and bias (Platt)."""
        slopes, bias = fit_weights([scores], labels)
        return Calibration(slopes[0], bias)


IDENTITY = Calibration(1.0, 0.0)


@dataclass(frozen=True, slots=True)
class Fusion:
    """How scores become the final logit of each mode of answering."""

    crm_weight: float
    llm_weight: float
    bias: float
    crm: Calibration
    """For answers without the language model."""
    popularity: Calibration
    """For answers without any model of the user."""

    @staticmethod
    def fit(
        crm_logits: FloatArray, llm_logits: FloatArray, labels: IntArray,
        popularity: FloatArray | None = None,
    ) -> "Fusion":
        """Fit on validation rows.

        Its log loss there is not above the calibrated CRM's, and that not above the raw CRM's.
        Raises DataError if rows are missing, not finite or of one label only.
        """
        calibration = Calibration.fit(crm_logits, labels)
        if log_loss(labels, calibration.apply(crm_logits)) > log_loss(labels, crm_logits):
            calibration = IDENTITY
        weights, bias = fit_weights([crm_logits, llm_logits], labels)
        popular = IDENTITY if popularity is None else Calibration.fit(popularity, labels)
        fused = Fusion(weights[0], weights[1], bias, calibration, popular)
        alone = Fusion(calibration.slope, 0.0, calibration.bias, calibration, popular)
        losses = [log_loss(labels, each.combine(crm_logits, llm_logits)) for each in (fused, alone)]
        return fused if losses[0] <= losses[1] else alone

    def combine(self, crm_logits: FloatArray, llm_logits: FloatArray) -> FloatArray:
        """Return the final logits of mode `full`."""
        crm, llm = np.asarray(crm_logits, np.float64), np.asarray(llm_logits, np.float64)
        values: FloatArray = self.crm_weight * crm + self.llm_weight * llm + self.bias
        return values

    def to_json(self) -> dict[str, Any]:
        """Return the content of fusion.json."""
        return {
            "format_version": FORMAT_VERSION,
            "full": {"crm": self.crm_weight, "llm": self.llm_weight, "bias": self.bias},
            "crm": {"slope": self.crm.slope, "bias": self.crm.bias},
            "popular": {"slope": self.popularity.slope, "bias": self.popularity.bias},
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Fusion":
        """Read the content of fusion.json; keys beside the weights are ignored.

        Raises ArtifactError if it was written in a format that this engine does not know.
        """
        if value.get("format_version") != FORMAT_VERSION:
            raise ArtifactError(
                f"fusion.json has format {value.get('format_version')!r}, "
                f"this engine reads {FORMAT_VERSION}"
            )
        full = value["full"]
        return Fusion(
            full["crm"], full["llm"], full["bias"], Calibration(**value["crm"]),
            Calibration(**value["popular"]),
        )


def fit_weights(scores: Sequence[FloatArray], labels: IntArray) -> tuple[list[float], float]:
    """Return the weights (none negative) and bias of least log loss for sum_k w_k score_k + bias.

    The loss is convex and there are at most two scores, so the best of the allowed solutions over
    all subsets of the scores is the constrained optimum.
    """
    if len(np.unique(labels)) < 2:
        raise DataError(f"fusion needs rows of both labels, got {len(labels)} rows of one")
    columns = [check_finite(each) for each in scores]
    solutions = [_fit_subset(columns, subset, labels) for subset in _subsets(len(columns))]
    allowed = [each for each in solutions if min(each[0]) >= 0]
    return min(allowed, key=lambda each: _loss(columns, each, labels))


def _fit_subset(
    columns: list[FloatArray], subset: tuple[int, ...], labels: IntArray
) -> tuple[list[float], float]:
    from sklearn.linear_model import LogisticRegression  # a second, for whoever only answers

    weights = [0.0] * len(columns)
    used = [k for k in subset if columns[k].std() > 0]
    rate = float(np.mean(labels))
    if not used:
        return weights, float(np.log(rate) - np.log1p(-rate))
    raw = np.stack([columns[k] for k in used], axis=1)
    mean, scale = raw.mean(axis=0), raw.std(axis=0)
    model = LogisticRegression(C=_INVERSE_PENALTY, solver="newton-cholesky")
    model.fit((raw - mean) / scale, labels)
    slopes = model.coef_[0] / scale
    for k, slope in zip(used, slopes, strict=True):
        weights[k] = float(slope)
    return weights, float(model.intercept_[0] - slopes @ mean)


def _subsets(count: int) -> list[tuple[int, ...]]:
    return [
        tuple(k for k in range(count) if chosen >> k & 1) for chosen in reversed(range(2**count))
    ]


def _loss(
    columns: list[FloatArray], solution: tuple[list[float], float], labels: IntArray
) -> float:
    weights, bias = solution
    return log_loss(labels, np.stack(columns, axis=1) @ np.array(weights) + bias)
