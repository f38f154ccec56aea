"""Implicit feedback: every event is a positive, and negatives are drawn.

Drawing them only from items that the user never had would make "had it before" a perfect rule
wherever users buy again. So a positive is REPEAT if the user had the item strictly before, and then
its negatives come from the user's own earlier items; else it is NEW, and they come from items new
to the user. Within a kind, "had it before" is the same for every row.

The rule, for one slate with its positives from time a to time b:
- a slate ends before an item that the user had at or after a, so that "before the row" and "before
  the slate" agree on what the user had;
- `negatives` for each positive, distinct in the slate, fewer where there are fewer;
- REPEAT: uniform from the distinct items had strictly before a and not had in [a, b]; where there
  is none, the slate's REPEAT positives are left out and counted, if they may be drawn themselves;
- NEW: from the catalogue's items not had up to b; the chance of an item is proportional to
  (events before T1 + 1) ^ 0.75, or uniform (config `slates.negative_draw`). The + 1 lets an item
  without events be drawn: else a cold item would always be a positive;
- a negative takes over the time of a positive of its kind; the order of the rows is shuffled.

Draws come from a generator seeded by (run.seed, user id): the same for any number of partitions.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine.config import SlateConfig
from engine.data.slates import Slate, events_before, next_row, slate_end
from engine.types import FeedbackKind, FloatArray, History, IntArray

POPULARITY_POWER = 0.75

_MAX_ROUNDS = 8
"""Rounds of drawing before all allowed items are listed."""


@dataclass
class NegativeSampler:
    """Draws catalogue items by weight."""

    weights: FloatArray
    """Weight of each item; position 0, the unknown item, has weight 0."""
    _cumulated: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        self._cumulated = np.cumsum(self.weights, dtype=np.float64)

    @classmethod
    def from_counts(cls, counts: IntArray, config: SlateConfig) -> "NegativeSampler":
        """Return the sampler of `config.negative_draw`; `counts` are events by item before T1."""
        power = POPULARITY_POWER if config.negative_draw == "popularity" else 0.0
        weights = (np.asarray(counts, np.float64) + 1.0) ** power
        weights[0] = 0.0
        return cls(weights)

    def among(self, is_allowed_I: npt.NDArray[np.bool_]) -> "NegativeSampler":
        """Return one that draws these items alone."""
        return NegativeSampler(np.where(is_allowed_I, self.weights, 0.0))

    def draw(self, count: int, excluded: set[int], rng: np.random.Generator) -> list[int]:
        """Return up to `count` different items that are not excluded."""
        taken: dict[int, None] = {}
        for _ in range(_MAX_ROUNDS):
            points = rng.random(2 * count) * self._cumulated[-1]
            for item in np.searchsorted(self._cumulated, points, side="right").tolist():
                if item not in excluded:
                    taken.setdefault(item)
            if len(taken) >= count:
                return list(taken)[:count]
        return [*taken, *self._draw_listed(count - len(taken), excluded | set(taken), rng)]

    def _draw_listed(self, count: int, excluded: set[int], rng: np.random.Generator) -> list[int]:
        allowed = np.setdiff1d(np.flatnonzero(self.weights), list(excluded))
        count = min(count, len(allowed))
        if not count:
            return []
        share = self.weights[allowed] / self.weights[allowed].sum()
        return [int(item) for item in rng.choice(allowed, count, replace=False, p=share)]


def user_generator(seed: int, user_id: str) -> np.random.Generator:
    """Return a user's own random numbers: the same in every process and partition."""
    digest = hashlib.sha256(user_id.encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest[:16], np.uint32).tolist()])


def previous_times(history: History) -> IntArray:
    """Return when the user had each row's item last, strictly before the row; -1 for never."""
    last: dict[int, int] = {}
    previous = np.full(len(history), -1, np.int64)
    for row, (item, time_s) in enumerate(
        zip(history.items.tolist(), history.timestamps_s.tolist(), strict=True)
    ):
        previous[row] = last.get(item, -1)
        last[item] = time_s
    return previous


@dataclass
class ImplicitSlates:
    """Builds one user's slates with drawn negatives; `dropped` counts positives left out."""

    history: History
    windows: IntArray
    """Of each row, or NO_WINDOW."""
    config: SlateConfig
    sampler: NegativeSampler
    rng: np.random.Generator
    dropped: int = 0
    _previous: IntArray = field(init=False)
    _before: IntArray = field(init=False)
    _had: "_Had" = field(init=False)

    def __iter__(self) -> Iterator[Slate]:
        history = self.history
        self._previous = previous_times(history)
        self._before = events_before(history)
        self._had = _Had(history, self.sampler.weights)
        start = next_row(self.windows, 0)
        while start < len(history):
            end = self._end(start)
            slate = self._slate(start, end, int(self.windows[start]))
            if slate is not None:
                yield slate
            start = next_row(self.windows, end)

    def _end(self, start: int) -> int:
        """Return where the positives of a slate end: before an item had in the slate's own time."""
        times, config = self.history.timestamps_s, self.config
        max_rows = config.max_size // (1 + config.negatives)
        end = slate_end(times, self.windows, start, max_rows, config.max_span_s)
        again = np.flatnonzero(self._previous[start:end] >= times[start])
        return start + int(again[0]) if len(again) else end

    def _slate(self, start: int, end: int, window: int) -> Slate | None:
        times = self.history.timestamps_s
        self._had.advance(int(times[start]), int(times[end - 1]))
        rows = np.arange(start, end)
        is_repeat = self._previous[start:end] >= 0
        rows_of = {FeedbackKind.REPEAT: rows[is_repeat], FeedbackKind.NEW: rows[~is_repeat]}
        blocks = [self._block(kind, rows) for kind, rows in rows_of.items() if len(rows)]
        items, labels, kinds, places = (
            np.concatenate(column) for column in zip(*blocks, strict=True)
        )
        if not len(items):
            return None
        order = self.rng.permutation(len(items))
        places = places[order]
        return Slate(
            start, window, int(self._before[start]), items[order], labels[order], kinds[order],
            times[places], self._before[places],
        )

    def _block(self, kind: FeedbackKind, rows: IntArray) -> tuple[IntArray, ...]:
        """Return items, labels, kinds and positions (a negative takes a positive's) of a kind."""
        count = len(rows) * self.config.negatives
        if kind is FeedbackKind.NEW:
            negatives = self.sampler.draw(count, self._had.seen, self.rng)
        else:
            negatives = self._had.draw_earlier(count, self.rng)
        if kind is FeedbackKind.REPEAT and not negatives:
            is_dropped = self.sampler.weights[self.history.items[rows]] > 0
            self.dropped += int(is_dropped.sum())
            rows = rows[~is_dropped]
        items = np.append(self.history.items[rows], np.array(negatives, np.int64))
        labels = (np.arange(len(items)) < len(rows)).astype(np.int8)
        return items, labels, np.full(len(items), kind, np.int8), np.resize(rows, len(items))


class _Had:
    """What the user had: strictly before a slate, and up to its end."""

    def __init__(self, history: History, weights: FloatArray) -> None:
        """`weights` of the items: one without weight is never drawn."""
        self._weights = weights
        self._items = history.items.tolist()
        self._times = history.timestamps_s.tolist()
        self._next_earlier = self._next_seen = 0
        self._earlier: list[int] = []      # in order of the first event
        self._is_earlier: set[int] = set()
        self._recent: set[int] = set()
        self.seen: set[int] = set()
        """Items had up to the slate's last row."""

    def advance(self, first_s: int, last_s: int) -> None:
        """Move on to the slate whose positives lie in [first_s, last_s]."""
        while self._next_earlier < len(self._items) and self._times[self._next_earlier] < first_s:
            item = self._items[self._next_earlier]
            if item not in self._is_earlier and self._weights[item]:
                self._earlier.append(item)
                self._is_earlier.add(item)
            self._next_earlier += 1
        while self._next_seen < len(self._items) and self._times[self._next_seen] <= last_s:
            self.seen.add(self._items[self._next_seen])
            self._next_seen += 1
        self._recent = set(self._items[self._next_earlier : self._next_seen])

    def draw_earlier(self, count: int, rng: np.random.Generator) -> list[int]:
        """Return up to `count` different items had before the slate and not in its time.

        Enough places are drawn that what is not allowed among them still leaves `count`.
        """
        drawn = min(count + len(self._recent), len(self._earlier))
        if not drawn:
            return []
        places = rng.choice(len(self._earlier), drawn, replace=False)
        items = (self._earlier[place] for place in places)
        return [item for item in items if item not in self._recent][:count]
