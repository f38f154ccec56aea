"""Which requests of a batch the language model reads, so that the most are answered in time.

All requests of a batch are answered when its last token is read: a request that is read makes the
others later.
"""

from collections.abc import Sequence

NEWEST = 0.3
"""Part of the newest measurement in the pace."""


class Pace:
    """How long the language model takes for a token here; learned from its last batches."""

    def __init__(self) -> None:
        self._seconds_per_token: float | None = None

    def learn(self, tokens: int, seconds: float) -> None:
        """Take in one measurement."""
        if tokens == 0:
            return
        newest = seconds / tokens
        known = newest if self._seconds_per_token is None else self._seconds_per_token
        self._seconds_per_token = known + NEWEST * (newest - known)

    def seconds(self, tokens: int) -> float:
        """Return how long these tokens should take; 0 before anything is known."""
        return tokens * (self._seconds_per_token or 0.0)


def in_time(costs_s: Sequence[float], left_s: Sequence[float]) -> list[bool]:
    """Tell which requests to read: the most whose costs together fit into what each has left.

    Where the request with the least time left is fixed, those with more time are taken by their
    cost, the cheapest first; the best of these choices is the best of all. Ties: more time left.
    """
    best: list[int] = []
    for limit_s in sorted(set(left_s), reverse=True):
        able = [place for place, left in enumerate(left_s) if left >= limit_s]
        chosen, total_s = [], 0.0
        for place in sorted(able, key=lambda place: costs_s[place]):
            total_s += costs_s[place]
            if total_s > limit_s:
                break
            chosen.append(place)
        if len(chosen) > len(best):
            best = chosen
    return [place in best for place in range(len(costs_s))]
