"""Candidates -> ranked items: the CRM orders all, the language model re-ranks the best.

    full      the best M by CRM, ordered by the fused score, then the rest in the CRM's order
    crm       all in the CRM's order (no language model asked for, or no time for it)
    popular   by popularity (nothing is known of the user, or the CRM fails)

Scores are logits. Several requests are ranked in one call; each keeps its own gates.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.errors import PromptError
from engine.metrics.gates import entropies
from engine.recommender.deadlines import Pace, in_time
from engine.recommender.explanation import Explanation, explain
from engine.recommender.language import (
    Reading,
    read_prompts,
    score_readings,
    tokens_to_read,
)
from engine.recommender.prefix_cache import PrefixCache
from engine.recommender.release import LoadedRelease
from engine.types import AnswerMode, CRMOutput, FloatArray, History, IntArray, Profile

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RankTask:
    """One request's candidates."""

    profile: Profile
    """Empty for a guest."""
    history: History
    candidates: IntArray
    llm_candidates: int
    """M, items that the language model re-ranks."""
    k: int
    """Items of the answer."""
    with_explanation: bool = False
    with_gates: bool = False
    """Whether the explanation lists every gate."""
    answer_by_s: float = math.inf
    """Unix time by which the answer is wanted: the language model is left out where it would take
    longer."""
    revision: int = 0
    """That of the catalogue in which the candidates are named."""


@dataclass(frozen=True, slots=True)
class RankedItem:
    """One item of an answer."""

    item_id: str
    title: str
    score: float
    """Final logit, calibrated."""
    crm_score: float | None = None
    llm_score: float | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """A ranked answer."""

    release_id: str
    mode: AnswerMode
    items: list[RankedItem]
    explanation: Explanation | None = None
    gate_entropy: float | None = None
    """Mean entropy of the gates over that of an even mix; None without the language model."""
    stage_ms: dict[str, float] = field(default_factory=dict)


def rank(
    release: LoadedRelease, tasks: Sequence[RankTask], cache: PrefixCache | None = None,
    pace: Pace | None = None,
) -> list[Ranking]:
    """Rank the candidates of several requests; stage times are those of the whole call.

    `cache` keeps prefixes for later calls; `pace` foretells which requests the language model can
    read before they are wanted, and learns from this call.
    """
    pace = pace or Pace()
    clock = StageClock()
    outputs = score_crm(release, tasks)
    orders = [best_first(output.logits_M, task.candidates)
              for output, task in zip(outputs, tasks, strict=True)]
    clock.stop("crm")
    readings = [
        _read(release, task, output, order)
        for task, output, order in zip(tasks, outputs, orders, strict=True)
    ]
    readings, tokens = _readable(release, tasks, readings, cache, pace)
    clock.stop("prompts")
    llm_logits = score_readings(release, readings, cache)
    clock.stop("llm")
    pace.learn(tokens, clock.stage_ms["llm"] / 1000)
    return [
        _ranking(release, task, output, order, reading, logits, clock.stage_ms)
        for task, output, order, reading, logits in zip(
            tasks, outputs, orders, readings, llm_logits, strict=True
        )
    ]


def rank_popular(
    release: LoadedRelease, candidates: IntArray, k: int, *, is_ordered: bool = False
) -> Ranking:
    """Rank by popularity; `is_ordered` keeps the order given."""
    scores = release.fusion.popularity.apply(release.popularity.scores[candidates])
    order = np.arange(len(candidates)) if is_ordered else best_first(scores, candidates)
    items = [
        _item(release, int(candidates[place]), float(scores[place])) for place in order[:k]
    ]
    return Ranking(release.release_id, AnswerMode.POPULAR, items)


def score_crm(release: LoadedRelease, tasks: Sequence[RankTask]) -> list[CRMOutput]:
    """Return the CRM's output for each request."""
    return release.crm.score(
        [task.history for task in tasks], [task.profile for task in tasks],
        [task.candidates for task in tasks],
    )


def best_first(scores: FloatArray, items: IntArray) -> IntArray:
    """Return places by score, largest first; ties: the smaller item first."""
    return np.lexsort((items, -np.asarray(scores, np.float64)))


class StageClock:
    """Wall time of consecutive stages in milliseconds."""

    def __init__(self) -> None:
        self.stage_ms: dict[str, float] = {}
        self._last = time.perf_counter()

    def stop(self, stage: str) -> None:
        """End a stage; the next one starts."""
        now = time.perf_counter()
        self.stage_ms[stage] = round((now - self._last) * 1000, 3)
        self._last = now


def _read(
    release: LoadedRelease, task: RankTask, output: CRMOutput, order: IntArray
) -> Reading | None:
    """Return the prompts of the best M; None (and a log line) where they cannot be built."""
    best = order[: task.llm_candidates]
    if release.language is None or len(best) == 0 or task.answer_by_s <= time.time():
        return None
    try:
        return read_prompts(
            release.language, task.history, task.profile, task.candidates, output, best
        )
    except PromptError as error:
        log.warning("release %s: answering by CRM alone: %s", release.release_id, error)
        return None


def _readable(
    release: LoadedRelease, tasks: Sequence[RankTask], readings: Sequence[Reading | None],
    cache: PrefixCache | None, pace: Pace,
) -> tuple[list[Reading | None], int]:
    """Return the readings without those for which there is no time, and their tokens."""
    now_s = time.time()
    asked = [(place, each) for place, each in enumerate(readings) if each is not None]
    tokens = [tokens_to_read(release, each, cache) for _, each in asked]
    chosen = in_time(
        [pace.seconds(number) for number in tokens],
        [tasks[place].answer_by_s - now_s for place, _ in asked],
    )
    if asked and not any(chosen):
        pace.doubt()
    found: list[Reading | None] = [None] * len(readings)
    for (place, each), is_chosen in zip(asked, chosen, strict=True):
        found[place] = each if is_chosen else None
    return found, sum(number for number, is_chosen in zip(tokens, chosen, strict=True) if is_chosen)


def _ranking(
    release: LoadedRelease, task: RankTask, output: CRMOutput, order: IntArray,
    reading: Reading | None, llm_M: FloatArray, stage_ms: dict[str, float],
) -> Ranking:
    """Put the re-ranked first, the rest behind, and cut at k."""
    crm_logits = np.asarray(output.logits_M, np.float64)
    scores = np.array(release.fusion.crm.apply(crm_logits))
    llm_scores: dict[int, float] = {}
    if reading is not None:
        scores[reading.slots] = release.fusion.combine(crm_logits[reading.slots], llm_M)
        llm_scores = dict(zip(reading.slots.tolist(), map(float, llm_M), strict=True))
        head = reading.slots[best_first(scores[reading.slots], task.candidates[reading.slots])]
        order = np.concatenate([head, order[len(head) :]])
    top = order[: task.k]
    items = [
        _item(
            release, int(task.candidates[slot]), float(scores[slot]), float(crm_logits[slot]),
            llm_scores.get(int(slot)),
        )
        for slot in top
    ]
    entropy = None if reading is None else _entropy_share(reading)
    explanation = None
    if task.with_explanation:
        explanation = explain(release, task.history, output, top, reading, task.with_gates)
    mode = AnswerMode.CRM if reading is None else AnswerMode.FULL
    return Ranking(release.release_id, mode, items, explanation, entropy, dict(stage_ms))


def _entropy_share(reading: Reading) -> float | None:
    """Return the mean entropy of the gates in [0, 1]; None for one adapter, which is no mix."""
    gates_PGN = np.concatenate(list(reading.gates))
    num_adapters = gates_PGN.shape[-1]
    return float(entropies(gates_PGN).mean() / np.log(num_adapters)) if num_adapters > 1 else None


def _item(
    release: LoadedRelease, item: int, score: float, crm_score: float | None = None,
    llm_score: float | None = None,
) -> RankedItem:
    catalogue = release.catalogue
    return RankedItem(
        catalogue.item_ids[item], catalogue.titles[item], score, crm_score, llm_score
    )
