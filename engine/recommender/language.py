"""Candidates of several requests -> prompts and gates -> one logit per candidate."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.models.personalized import PersonalizedLLM
from engine.recommender.release import LanguageHalf, LoadedRelease
from engine.types import (
    CRMOutput,
    FloatArray,
    GateInput,
    History,
    IntArray,
    Profile,
    SlatePrompt,
)

MAX_BLOCKS = 25
"""Candidates behind one prefix: a packed pass pays for what its mask hides."""
MAX_PROMPTS = 8
"""Prompts of one forward pass."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the language model reads of one request."""

    slots: IntArray
    """Candidates in the order of the prompts' blocks."""
    prompts: Sequence[SlatePrompt]
    gates: Sequence[FloatArray]
    """[P, G, N] of each prompt."""
    shown: IntArray
    """Positions of the past events in any of the texts, ascending."""


def read_prompts(
    language: LanguageHalf, history: History, profile: Profile, candidates: IntArray,
    output: CRMOutput, slots: IntArray,
) -> Reading:
    """Return prompts and gates of some candidates (`slots` are places in `candidates`).

    Candidates share a prompt if neither text nor gates of the prefix depend on them.
    """
    gate = language.model.config.gate
    built = language.prompts.build_all(history, profile, candidates[slots], gate)
    prompts = [piece for each in built for piece in split_blocks(each.prompt)]
    ends = np.cumsum([len(prompt.blocks) for prompt in prompts])
    parts = np.split(slots, ends[:-1])
    gates = _gates(language.model, output, parts)
    shown = np.unique(np.concatenate([each.shown for each in built]))
    return Reading(slots, prompts, gates, shown)


def split_blocks(prompt: SlatePrompt) -> list[SlatePrompt]:
    """Cut a prompt of many candidates into several with the same prefix."""
    return [
        SlatePrompt(prompt.prefix, prompt.blocks[start : start + MAX_BLOCKS])
        for start in range(0, len(prompt.blocks), MAX_BLOCKS)
    ]


def pick(output: CRMOutput, slots: IntArray) -> CRMOutput:
    """Return the output of some candidates."""
    return CRMOutput(
        output.logits_M[slots], output.user_state_D, output.target_states_MD[slots],
        output.behaviors_MS[slots], output.attention_MS[slots],
    )


def score_readings(
    release: LoadedRelease, readings: Sequence[Reading | None]
) -> list[FloatArray]:
    """Return the logits of each reading's slots; empty where there is no reading.

    Prompts of all requests share forward passes, longest first, each under its own gates.
    """
    flat = [
        (prompt, gates, number)
        for number, reading in enumerate(readings) if reading is not None
        for prompt, gates in zip(reading.prompts, reading.gates, strict=True)
    ]
    logits: list[FloatArray] = [np.zeros(0)] * len(flat)
    order = sorted(range(len(flat)), key=lambda place: -_num_tokens(flat[place][0]))
    for start in range(0, len(flat), MAX_PROMPTS):
        chosen = order[start : start + MAX_PROMPTS]
        assert release.language is not None
        scored = release.language.model.score(
            [flat[place][0] for place in chosen], [flat[place][1] for place in chosen]
        )
        for place, values in zip(chosen, scored, strict=True):
            logits[place] = values
    return [
        np.concatenate([
            np.zeros(0), *(logits[place] for place, each in enumerate(flat) if each[2] == number)
        ])
        for number in range(len(readings))
    ]


def _gates(
    model: PersonalizedLLM, output: CRMOutput, parts: Sequence[IntArray]
) -> list[FloatArray]:
    if model.config.gate is GateInput.USER:
        return [model.gates(pick(output, parts[0]))] * len(parts)
    return [model.gates(pick(output, part)) for part in parts]


def _num_tokens(prompt: SlatePrompt) -> int:
    return len(prompt.prefix) + sum(map(len, prompt.blocks))
