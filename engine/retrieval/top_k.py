"""Scores -> the places of the largest: the search that serves and the one that is measured."""

import numpy as np

from engine.types import FloatArray, IntArray


def top_k(scores: FloatArray, k: int) -> IntArray:
    """Return the places of the k largest scores, largest first; ties: the smaller place first."""
    k = min(k, len(scores))
    if k == 0:
        return np.zeros(0, np.int64)
    limit = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > limit)
    equal = np.flatnonzero(scores == limit)[: k - len(above)]
    chosen = np.concatenate([above, equal])
    return np.asarray(chosen[np.lexsort((chosen, -scores[chosen]))])
