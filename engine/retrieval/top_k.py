"""Scores -> the places of the largest: the search that serves and the one that is measured."""

import numpy as np

from engine.types import FloatArray, IntArray

LANES = 32
"""Scores of which the largest stands for all in the first look at many."""


def top_k(scores: FloatArray, k: int) -> IntArray:
    """Return the places of the k largest scores, largest first; ties: the smaller place first."""
    k = min(k, len(scores))
    if k == 0:
        return np.zeros(0, np.int64)
    if len(scores) < 2 * LANES * k:
        return _top_k(scores, k)
    likely = np.flatnonzero(scores >= _floor(scores, k))
    return np.asarray(likely[_top_k(scores[likely], k)])


def _floor(scores: FloatArray, k: int) -> float:
    """Return a score that at least k of them reach: the k-th best of the best of LANES each."""
    peaks = scores[: len(scores) // LANES * LANES].reshape(LANES, -1).max(axis=0)
    return float(np.partition(peaks, len(peaks) - k)[len(peaks) - k])


def _top_k(scores: FloatArray, k: int) -> IntArray:
    limit = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > limit)
    equal = np.flatnonzero(scores == limit)[: k - len(above)]
    chosen = np.concatenate([above, equal])
    return np.asarray(chosen[np.lexsort((chosen, -scores[chosen]))])
