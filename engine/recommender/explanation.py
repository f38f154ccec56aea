"""Why an answer looks as it does: the mix of adapters, and the past events that mattered."""

from dataclasses import dataclass

import numpy as np

from engine.models.personalized import PersonalizedLLM
from engine.recommender.language import Reading
from engine.recommender.release import LoadedRelease
from engine.types import CRMOutput, FloatArray, GateInput, History, IntArray

MAX_PAST = 20
"""Past events that an explanation lists beside those that the prompt shows."""


@dataclass(frozen=True, slots=True)
class PastInteraction:
    """A past event and its part in the answer."""

    item_id: str
    title: str
    timestamp_s: int
    rating: float
    attention: float
    """Mean weight of the event in the CRM's attention, over the items answered."""
    is_in_prompt: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """Adapter mix (None without the language model) and past events, most attention first."""

    gate_weights: list[float] | None
    """[N], mean over layers and matrices (and over candidates, for `target` gates)."""
    gates: list[list[float]] | None
    """[G, N] of the same prompt positions."""
    past: list[PastInteraction]


def explain(
    release: LoadedRelease, history: History, output: CRMOutput, slots: IntArray,
    reading: Reading | None, with_gates: bool,
) -> Explanation:
    """Explain the answer that consists of these candidates."""
    mean_N = all_GN = None
    if reading is not None and release.language is not None:
        weights_GN = user_gates(release.language.model, reading)
        mean_N = _rounded(weights_GN.mean(axis=0))
        all_GN = [_rounded(row) for row in weights_GN] if with_gates else None
    attention_L = attention_of(output, slots, len(history))
    shown = set() if reading is None else set(reading.shown.tolist())
    ranked = np.lexsort((-np.arange(len(history)), -attention_L)).tolist()
    top = [place for place in ranked[:MAX_PAST] if attention_L[place] > 0]
    listed = sorted(set(top) | shown, key=ranked.index)
    return Explanation(mean_N, all_GN, [
        PastInteraction(
            release.catalogue.item_ids[item], release.catalogue.titles[item],
            int(history.timestamps_s[place]), float(history.ratings[place]),
            round(float(attention_L[place]), 6), place in shown,
        )
        for place in listed for item in [int(history.items[place])]
    ])


def user_gates(model: PersonalizedLLM, reading: Reading) -> FloatArray:
    """Return the prefix's gates [G, N]; for `target` gates their mean over the candidates."""
    if model.config.gate is GateInput.TARGET:
        return np.asarray(np.concatenate(list(reading.gates)).mean(axis=0))
    return np.asarray(reading.gates[0][0])


def attention_of(output: CRMOutput, slots: IntArray, length: int) -> FloatArray:
    """Return the mean attention of these candidates on each past event [L]."""
    total = np.zeros(length)
    behaviors, attention = output.behaviors_MS[slots], output.attention_MS[slots]
    seen = behaviors >= 0
    np.add.at(total, behaviors[seen], attention[seen])
    return total / max(1, len(slots))


def _rounded(values: FloatArray) -> list[float]:
    return [round(float(value), 6) for value in values]
