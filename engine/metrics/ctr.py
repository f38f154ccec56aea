"""Metrics of logits against labels, with draws of a paired bootstrap over users.

Arrays of one call have equal length (rows). Letters here: N rows, U users, D draws, C calibration
bins. A metric that needs both labels is NaN where only one is there. NaN among the logits is a
DataError: a model that yields it has no metric.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.errors import DataError
from engine.metrics.estimates import (
    CHUNK_CELLS,
    Estimate,
    check_finite,
    draw_users,
    ratio,
)
from engine.types import FloatArray, IntArray

METRICS = ("auc", "gauc", "gauc_mean", "slate_gauc", "log_loss", "accuracy", "ece")
"""gauc weights a user's AUC by rows, gauc_mean does not; slate_gauc is the AUC within a slate, by
rows: what one request ranks, at one moment. ece: expected calibration error."""

AUCS = ("auc", "gauc", "slate_gauc")
"""How well rows are ordered: over all, within a user, within a slate."""
SHOWN = (*AUCS, "log_loss")
"""Those that are shown where there is room for few."""

LOWER_IS_BETTER = frozenset({"log_loss", "ece"})
CALIBRATION_BINS = 15


@dataclass(frozen=True, slots=True)
class Rows:
    """Whose rows they are and how they were labelled."""

    users_N: IntArray
    """0 to num_users - 1; every user has a row."""
    labels_N: IntArray
    num_users: int
    slates_N: IntArray | None = None
    """0 and up; all rows of a slate are one user's. None: slate_gauc is not defined."""

    @staticmethod
    def of(users: IntArray, labels: IntArray, slates: IntArray | None = None) -> "Rows":
        """Build from any codes or ids of users and slates (text works too)."""
        found, codes = np.unique(users, return_inverse=True)
        slates_N = None if slates is None else np.unique(slates, return_inverse=True)[1]
        return Rows(
            codes.astype(np.int64), np.asarray(labels).astype(np.int8), len(found), slates_N
        )

    def where(self, kept: npt.NDArray[np.bool_]) -> "Rows":
        """Return the rows under a boolean mask."""
        slates = None if self.slates_N is None else self.slates_N[kept]
        return Rows.of(self.users_N[kept], self.labels_N[kept], slates)

    def __len__(self) -> int:
        return len(self.labels_N)


def probabilities(logits: FloatArray) -> FloatArray:
    """Return 1 / (1 + exp(-logit)) without overflow."""
    values: FloatArray = np.exp(-np.logaddexp(0.0, -np.asarray(logits, np.float64)))
    return values


def row_losses(labels_N: IntArray, logits_N: FloatArray) -> FloatArray:
    """Return each row's cross-entropy in nats, stable for large logits."""
    return np.logaddexp(0.0, np.where(np.asarray(labels_N) == 1, -logits_N, logits_N))


def auc(labels_N: IntArray, logits_N: FloatArray) -> float:
    """Return the area under the ROC curve; ties count half; NaN if only one label is there."""
    from sklearn.metrics import roc_auc_score  # a second, for whoever only answers

    logits = check_finite(logits_N)
    if len(np.unique(labels_N)) < 2:
        return float("nan")
    return float(roc_auc_score(labels_N, logits))


def log_loss(labels_N: IntArray, logits_N: FloatArray) -> float:
    """Return the mean cross-entropy in nats; NaN without rows."""
    losses = row_losses(labels_N, check_finite(logits_N))
    return float(losses.mean()) if len(losses) else float("nan")


def accuracy(labels_N: IntArray, logits_N: FloatArray) -> float:
    """Return the share of rows on the right side of probability 0.5 (a logit of 0 counts as 1)."""
    right = (check_finite(logits_N) >= 0) == (np.asarray(labels_N) == 1)
    return float(right.mean()) if len(right) else float("nan")


def user_aucs(rows: Rows, logits_N: FloatArray) -> FloatArray:
    """Return each user's AUC [U]; NaN for a user with one label only. Ties count half."""
    return group_aucs(rows.users_N, rows.num_users, rows.labels_N, logits_N)


def group_aucs(
    groups_N: IntArray, num_groups: int, labels_N: IntArray, logits_N: FloatArray
) -> FloatArray:
    """Return the AUC within each group [num_groups]; NaN where it has one label only."""
    order = np.lexsort((logits_N, groups_N))
    groups, logits = groups_N[order], logits_N[order]
    labels = labels_N[order].astype(np.float64)
    first_of_tie = np.ones(len(groups), bool)
    first_of_tie[1:] = (groups[1:] != groups[:-1]) | (logits[1:] != logits[:-1])
    ties = np.cumsum(first_of_tie) - 1
    starts = np.flatnonzero(first_of_tie)
    sizes = np.diff(np.append(starts, len(groups)))
    group_starts = np.searchsorted(groups, np.arange(num_groups))
    ranks_N = (starts + (sizes + 1) / 2)[ties] - group_starts[groups]
    positives = np.bincount(groups, labels, num_groups)
    negatives = np.bincount(groups, 1 - labels, num_groups)
    rank_sums = np.bincount(groups, ranks_N * labels, num_groups)
    pairs = positives * negatives
    wins = rank_sums - positives * (positives + 1) / 2
    return ratio(wins, pairs)


def gauc(rows: Rows, logits_N: FloatArray, *, weighted: bool = True) -> float:
    """Return the mean AUC of users with both labels, weighted by their rows or not at all."""
    aucs = user_aucs(rows, check_finite(logits_N))
    kept = ~np.isnan(aucs)
    sizes = np.bincount(rows.users_N, minlength=rows.num_users)[kept]
    weights = sizes if weighted else np.ones(len(sizes))
    return float(np.average(aucs[kept], weights=weights)) if kept.any() else float("nan")


def calibration_bins(logits_N: FloatArray, num_bins: int = CALIBRATION_BINS) -> IntArray:
    """Return each row's bin: equal widths of predicted probability."""
    bins = (probabilities(logits_N) * num_bins).astype(np.int64)
    return np.minimum(bins, num_bins - 1)


def calibration_error(
    labels_N: IntArray, logits_N: FloatArray, num_bins: int = CALIBRATION_BINS
) -> float:
    """Return sum over bins of (share of rows) * |mean probability - positive rate|."""
    logits = check_finite(logits_N)
    gaps = probabilities(logits) - labels_N
    per_bin = np.bincount(calibration_bins(logits, num_bins), gaps, num_bins)
    return float(np.abs(per_bin).sum() / len(gaps)) if len(gaps) else float("nan")


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """One point of a reliability diagram."""

    mean_probability: float
    positive_rate: float
    num_rows: int


def reliability(
    labels_N: IntArray, logits_N: FloatArray, num_bins: int = CALIBRATION_BINS
) -> list[ReliabilityBin]:
    """Return the bins that hold rows, from low to high probability."""
    logits = check_finite(logits_N)
    bins = calibration_bins(logits, num_bins)
    rows_of = [np.flatnonzero(bins == k) for k in range(num_bins)]
    predicted, labels = probabilities(logits), np.asarray(labels_N)
    return [
        ReliabilityBin(float(predicted[rows].mean()), float(labels[rows].mean()), len(rows))
        for rows in rows_of if len(rows)
    ]


class WeightedAUC:
    """AUC of the same rows under many weights of users: sorts once, then O(N) for each draw."""

    def __init__(self, rows: Rows, logits_N: FloatArray) -> None:
        order = np.argsort(logits_N, kind="stable")
        logits = logits_N[order]
        self._users_N = rows.users_N[order]
        self._positive_N = rows.labels_N[order].astype(np.float64)
        steps = np.flatnonzero(logits[1:] != logits[:-1]) + 1
        self._tie_starts = np.concatenate([np.zeros(1, np.int64), steps])

    def __call__(self, weights_DU: FloatArray) -> FloatArray:
        """Return the AUC of each draw [D]; NaN where a draw has one label only.

        sum over ties t of pos_t * (neg before t + neg_t / 2), over all pairs.
        """
        weights_DN = weights_DU[:, self._users_N]
        positive_DN = weights_DN * self._positive_N
        positive = np.add.reduceat(positive_DN, self._tie_starts, axis=1)
        negative = np.add.reduceat(weights_DN - positive_DN, self._tie_starts, axis=1)
        before = np.cumsum(negative, axis=1) - negative
        wins = (positive * (before + negative / 2)).sum(axis=1)
        return ratio(wins, positive.sum(axis=1) * negative.sum(axis=1))


class UserSums:
    """Sums over each user's rows from which every metric but AUC follows for any draw of users."""

    def __init__(self, rows: Rows, logits_N: FloatArray) -> None:
        users, count = rows.users_N, rows.num_users
        aucs = user_aucs(rows, logits_N)
        ranked = (~np.isnan(aucs)).astype(np.float64)
        aucs = np.nan_to_num(aucs)
        sizes = np.bincount(users, minlength=count).astype(np.float64)
        right = (logits_N >= 0) == (rows.labels_N == 1)
        self._sums_UK = np.stack([
            sizes, np.bincount(users, row_losses(rows.labels_N, logits_N), count),
            np.bincount(users, right, count),
            aucs * sizes, ranked * sizes, aucs, ranked, *slate_sums(rows, logits_N),
        ], axis=1)
        cells = users * CALIBRATION_BINS + calibration_bins(logits_N)
        gaps = np.bincount(
            cells, probabilities(logits_N) - rows.labels_N, count * CALIBRATION_BINS
        )
        self._gaps_UC = gaps.reshape(count, CALIBRATION_BINS)

    def __call__(self, weights_DU: FloatArray) -> dict[str, FloatArray]:
        """Return each metric of each draw [D]."""
        size, loss, right, auc_rows, rows, auc_users, users, auc_slates, slate_rows = (
            weights_DU @ self._sums_UK
        ).T
        gaps_DC = np.abs(weights_DU @ self._gaps_UC)
        return {
            "gauc": ratio(auc_rows, rows), "gauc_mean": ratio(auc_users, users),
            "slate_gauc": ratio(auc_slates, slate_rows),
            "log_loss": ratio(loss, size), "accuracy": ratio(right, size),
            "ece": ratio(gaps_DC.sum(axis=1), size),
        }


def slate_sums(rows: Rows, logits_N: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return for each user [U] the sum of rows * AUC over slates with both labels, and the rows."""
    if rows.slates_N is None:
        return np.zeros(rows.num_users), np.zeros(rows.num_users)
    sizes_S = np.bincount(rows.slates_N)
    owners_S = np.zeros(len(sizes_S), np.int64)
    owners_S[rows.slates_N] = rows.users_N
    aucs_S = group_aucs(rows.slates_N, len(sizes_S), rows.labels_N, logits_N)
    ranked_S = np.where(np.isnan(aucs_S), 0.0, sizes_S)
    in_order_S = np.nan_to_num(aucs_S) * ranked_S
    in_order_U, ranked_U = (
        np.bincount(owners_S, each, rows.num_users).astype(np.float64)
        for each in (in_order_S, ranked_S)
    )
    return in_order_U, ranked_U


def measure(
    rows: Rows, logits_N: FloatArray, *, num_draws: int, seed: int
) -> dict[str, Estimate]:
    """Return every metric of METRICS with its draws over users.

    Two models measured on the same Rows with one seed are paired: subtract their estimates. Time
    is O(num_draws * N) and memory is bounded by a chunk of draws. Drawing users anew widens the
    gaps that ece sums up as absolute values; its draws are shifted back by their mean excess.
    """
    logits = check_finite(logits_N)
    if len(logits) != len(rows):
        raise DataError(f"{len(logits)} logits for {len(rows)} rows")
    if not len(rows):
        raise DataError("no rows to measure")
    weighted_auc, sums = WeightedAUC(rows, logits), UserSums(rows, logits)

    def metrics(weights_DU: FloatArray) -> dict[str, FloatArray]:
        return {"auc": weighted_auc(weights_DU), **sums(weights_DU)}

    once = metrics(np.ones((1, rows.num_users)))
    chunk = max(1, CHUNK_CELLS // len(rows))
    parts = [metrics(each) for each in draw_users(rows.num_users, num_draws, seed, chunk)]
    draws = {name: np.concatenate([part[name] for part in parts]) for name in METRICS}
    draws["ece"] = np.maximum(0.0, draws["ece"] - (draws["ece"].mean() - once["ece"]))
    return {name: Estimate(float(once[name][0]), draws[name]) for name in METRICS}
