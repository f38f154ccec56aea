"""How gates route: sharply or evenly, and how much they differ between users.

Letters here: S slates or users, G gates, K adapters.
"""

from dataclasses import dataclass

import numpy as np

from engine.errors import DataError
from engine.metrics.estimates import check_finite
from engine.types import FloatArray


@dataclass(frozen=True, slots=True)
class GateStatistics:
    """How gates route: sharply or evenly, and how much they differ between users."""

    num_users: int
    num_gates: int
    num_adapters: int
    entropy: float
    """Mean entropy of a gate in nats."""
    entropy_share: float
    """The same over ln K: 1 is uniform, 0 is one adapter alone."""
    load_K: tuple[float, ...]
    """Mean weight of each adapter."""
    load_entropy_share: float
    """Entropy of the mean weights of each gate over ln K: how evenly the bank is used."""
    variation: float
    """Mean total variation, 0.5 * sum_k |a_k - b_k|, over all pairs of users and all gates."""
    variation_G: tuple[float, ...]
    """The same for each gate."""
    spread: float
    """Mean standard deviation of a weight over users."""


def entropies(gates: FloatArray) -> FloatArray:
    """Return -sum a ln a over the last axis, in nats; 0 ln 0 is 0."""
    gates = np.asarray(gates, np.float64)
    logs = np.log(gates, out=np.zeros_like(gates), where=gates > 0)
    summed: FloatArray = -(gates * logs).sum(axis=-1)
    return summed


def pairwise_variation(gates_SGK: FloatArray) -> FloatArray:
    """Return the mean total variation over all pairs, for each gate [G]; zeros for one user.

    Exact without visiting pairs: sorted values x_(i) give sum_(i<j) |x_i - x_j| =
    sum_i (2 i - S + 1) x_(i).
    """
    num = len(gates_SGK)
    if num < 2:
        return np.zeros(gates_SGK.shape[1])
    factors_S = 2.0 * np.arange(num) - num + 1
    gaps_GK = np.tensordot(factors_S, np.sort(gates_SGK.astype(np.float64), axis=0), axes=1)
    mean_G: FloatArray = gaps_GK.sum(axis=-1) / (num * (num - 1))
    return mean_G


def gate_statistics(gates_SGK: FloatArray) -> GateStatistics:
    """Return the statistics of gates [S, G, K], one entry for each user; weights sum to 1."""
    if gates_SGK.ndim != 3 or not gates_SGK.size:
        raise DataError(f"gates must be [users, gates, adapters], got shape {gates_SGK.shape}")
    num_users, num_gates, num_adapters = gates_SGK.shape
    gates = check_finite(gates_SGK)
    full = np.log(num_adapters) if num_adapters > 1 else 1.0
    entropy = float(entropies(gates).mean())
    variation_G = pairwise_variation(gates)
    return GateStatistics(
        num_users, num_gates, num_adapters, entropy, entropy / full,
        tuple(gates.mean(axis=(0, 1)).tolist()),
        float(entropies(gates.mean(axis=0)).mean() / full),
        float(variation_G.mean()), tuple(variation_G.tolist()), float(gates.std(axis=0).mean()),
    )
