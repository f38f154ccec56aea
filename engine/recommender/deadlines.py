"""Which requests of a batch the language model reads, so that the most are answered in time.

All requests of a batch are answered when its last token is read: a request that is read makes the
others later.
"""

import math
from collections.abc import Sequence

NEWEST = 0.3
"""Part of the newest measurement in the pace."""


class Pace:
    """How long the language model takes for a token here; learned from its last batches."""

    def __init__(self) -> None:
        self._seconds_per_token: float | None = None
        self._is_warm = False

    def learn(self, tokens: int, seconds: float) -> None:
        """Take in one measurement; the first, which pays for what is loaded only once, is not."""
        if tokens == 0:
            return
        if not self._is_warm:
            self._is_warm = True
            return
        newest = seconds / tokens
        known = newest if self._seconds_per_token is None else self._seconds_per_token
        self._seconds_per_token = known + NEWEST * (newest - known)

    def doubt(self) -> None:
        """Expect less: nothing was read, so nothing else would ever correct a pace too slow."""
        if self._seconds_per_token is not None:
            self._seconds_per_token *= 1 - NEWEST

    def seconds(self, tokens: int) -> float:
        """Return how long these tokens should take; 0 before anything is known."""
        return tokens * (self._seconds_per_token or 0.0)


def in_time(costs_s: Sequence[float], left_s: Sequence[float]) -> list[bool]:
    """Tell which requests to read: all that have any time (infinity), and the most of the others
    whose costs together fit into what each has left.

    Where the request with the least time left is fixed, those with more are taken by their cost,
    the cheapest first; the best of these choices is the best of all. Ties: more time left.
    """
    patient = [place for place, left in enumerate(left_s) if left == math.inf]
    patient_s = sum(costs_s[place] for place in patient)
    best: list[int] = []
    for limit_s in sorted(set(left_s) - {math.inf}, reverse=True):
        able = [place for place, left in enumerate(left_s) if limit_s <= left < math.inf]
        chosen, total_s = [], patient_s
        for place in sorted(able, key=lambda place: costs_s[place]):
            total_s += costs_s[place]
            if total_s > limit_s:
                break
            chosen.append(place)
        if len(chosen) > len(best):
            best = chosen
    chosen_at_all = {*patient, *best}
    return [place in chosen_at_all for place in range(len(costs_s))]
