"""A value with its draws over users, and the interval that they give.

Letters here: U users, D draws, M metrics.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from engine.errors import DataError
from engine.types import FloatArray, IntArray

COVERAGE = 0.95
CHUNK_CELLS = 4_000_000
"""Numbers that one chunk of draws may hold."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and the percentile interval of its draws."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Return the JSON form."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric on the rows and on each draw of users; NaN where it is not defined."""

    value: float
    draws_D: FloatArray

    def minus(self, other: "Estimate") -> "Estimate":
        """Return the difference; both must have been measured on the same users and seed, so that
        they share their draws.
        """
        return Estimate(self.value - other.value, self.draws_D - other.draws_D)

    def interval(self) -> Interval | None:
        """Return the 95% percentile interval over the defined draws, None if there is no value."""
        defined = self.draws_D[~np.isnan(self.draws_D)]
        if np.isnan(self.value) or not len(defined):
            return None
        margin = 50 * (1 - COVERAGE)
        low, high = np.percentile(defined, [margin, 100 - margin])
        return Interval(float(self.value), float(low), float(high))


def differences(
    first: Mapping[str, Estimate], second: Mapping[str, Estimate]
) -> dict[str, Interval | None]:
    """Return the paired interval of first - second for each metric of `first`."""
    return {name: each.minus(second[name]).interval() for name, each in first.items()}


def draw_users(num_users: int, num_draws: int, seed: int, chunk: int) -> Iterator[FloatArray]:
    """Yield how often each user is drawn, `chunk` draws at a time: [<= chunk, U].

    Each draw takes `num_users` users with replacement. The draws depend on the number of users and
    the seed alone, so two models measured on the same rows see the same draws.
    """
    rng = np.random.default_rng(seed)
    for start in range(0, num_draws, chunk):
        yield np.stack([
            np.bincount(rng.integers(num_users, size=num_users), minlength=num_users)
            for _ in range(min(chunk, num_draws - start))
        ]).astype(np.float64)


def ratios_of_sums(
    tops_UM: FloatArray, bottoms_UM: FloatArray, *, num_draws: int, seed: int
) -> list[Estimate]:
    """Return for each of M metrics the sum of its tops over that of its bottoms, over all users and
    over each draw of them. Memory is bounded by a chunk of draws.
    """
    count = len(tops_UM)
    draws_DM = np.concatenate([
        ratio(weights_DU @ tops_UM, weights_DU @ bottoms_UM)
        for weights_DU in draw_users(count, num_draws, seed, max(1, CHUNK_CELLS // count))
    ])
    values_M = ratio(tops_UM.sum(axis=0), bottoms_UM.sum(axis=0))
    return [Estimate(float(value), draws_DM[:, m]) for m, value in enumerate(values_M)]


def check_finite(values: FloatArray) -> FloatArray:
    """Return logits or weights as float64; raise DataError if one is not finite."""
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise DataError(f"{bad} of {len(values)} values are NaN or infinite")
    return values


def ratio(top: FloatArray, bottom: FloatArray | IntArray) -> FloatArray:
    """Return top / bottom; NaN where the bottom is not above 0."""
    quotient: FloatArray = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)
    return quotient
