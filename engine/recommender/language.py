"""Candidates of several requests -> prompts and gates -> one logit per candidate."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np

from engine.models.attention import PrefixStates
from engine.models.personalized import PersonalizedLLM
from engine.recommender.prefix_cache import PrefixCache, PrefixKey
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

MAX_TOKENS = 2048
"""Tokens of one forward pass: enough to fill the device, and a bound on its memory."""


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
    prompts = [each.prompt for each in built]
    ends = np.cumsum([len(prompt.blocks) for prompt in prompts])
    gates = _gates(language.model, output, np.split(slots, ends[:-1]))
    shown = np.unique(np.concatenate([each.shown for each in built]))
    return Reading(slots, prompts, gates, shown)


def pick(output: CRMOutput, slots: IntArray) -> CRMOutput:
    """Return the output of some candidates."""
    return CRMOutput(
        output.logits_M[slots], output.user_state_D, output.target_states_MD[slots],
        output.behaviors_MS[slots], output.attention_MS[slots],
    )


def score_readings(
    release: LoadedRelease, readings: Sequence[Reading | None], cache: PrefixCache | None = None
) -> list[FloatArray]:
    """Return the logits of each reading's slots; empty where there is no reading.

    Each prompt's prefix is read once, then its blocks behind it; prompts of all requests share
    forward passes, each under its own gates. `cache` keeps prefixes for later calls.
    """
    logits: list[list[FloatArray]] = [[np.zeros(0)] for _ in readings]
    flat = [
        (prompt, gates, logits[number])
        for number, reading in enumerate(readings) if reading is not None
        for prompt, gates in zip(reading.prompts, reading.gates, strict=True)
    ]
    for span in runs([len(prompt.prefix) for prompt, *_ in flat], MAX_TOKENS):
        assert release.language is not None
        prompts, gates, found = zip(*flat[span], strict=True)
        states = _read_prefixes(release, prompts, gates, cache)
        scored = _score_blocks(release.language.model, prompts, gates, states)
        for of_request, values in zip(found, scored, strict=True):
            of_request.append(values)
    return [np.concatenate(parts) for parts in logits]


def tokens_to_read(release: LoadedRelease, reading: Reading, cache: PrefixCache | None) -> int:
    """Return how many tokens the language model has to read: kept prefixes cost nothing."""
    total = 0
    for prompt, gates in zip(reading.prompts, reading.gates, strict=True):
        total += sum(map(len, prompt.blocks))
        key = PrefixKey.of(release.release_id, gates, prompt.prefix)
        total += 0 if cache is not None and key in cache else len(prompt.prefix)
    return total


def _read_prefixes(
    release: LoadedRelease, prompts: Sequence[SlatePrompt], gates: Sequence[FloatArray],
    cache: PrefixCache | None,
) -> list[PrefixStates]:
    """Return the states of each prompt's prefix; equal ones are read once, and none of the cache.

    A prefix that one candidate alone stands behind would crowd out those of users: it is not kept.
    """
    assert release.language is not None
    keys = [PrefixKey.of(release.release_id, each, prompt.prefix)
            for prompt, each in zip(prompts, gates, strict=True)]
    known = {key: states for key in set(keys) if cache and (states := cache.get(key))}
    wanted = {key: place for place, key in enumerate(keys) if key not in known}
    if wanted:
        read = release.language.model.read_prefixes(
            [prompts[place].prefix for place in wanted.values()],
            [gates[place] for place in wanted.values()],
        )
        known |= zip(wanted, read, strict=True)
    for key, place in wanted.items():
        if cache and len(prompts[place].blocks) > 1:
            cache.put(key, known[key])
    return [known[key] for key in keys]


def _score_blocks(
    model: PersonalizedLLM, prompts: Sequence[SlatePrompt], gates: Sequence[FloatArray],
    states: Sequence[PrefixStates],
) -> list[FloatArray]:
    """Return the logits of each prompt's blocks behind its prefix."""
    places = [
        (number, slot)
        for number, prompt in enumerate(prompts) for slot in range(len(prompt.blocks))
    ]
    sizes = [len(prompts[number].blocks[slot]) for number, slot in places]
    found: list[list[FloatArray]] = [[] for _ in prompts]
    for span in runs(sizes, MAX_TOKENS, padded=True):
        parts = [
            (number, [slot for _, slot in of_prompt])
            for number, of_prompt in groupby(places[span], key=itemgetter(0))
        ]
        scored = model.score_behind(
            [states[number] for number, _ in parts],
            [[prompts[number].blocks[slot] for slot in slots] for number, slots in parts],
            [rows_of(gates[number], slots) for number, slots in parts],
        )
        for (number, _), values in zip(parts, scored, strict=True):
            found[number].append(values)
    return [np.concatenate(values) for values in found]


def _gates(
    model: PersonalizedLLM, output: CRMOutput, parts: Sequence[IntArray]
) -> list[FloatArray]:
    """Return the gates of each prompt, which holds the candidates of a part."""
    if model.config.gate is GateInput.USER:
        return [model.gates(pick(output, parts[0]))] * len(parts)
    return [model.gates(pick(output, part)) for part in parts]


def rows_of(gates: FloatArray, slots: Sequence[int]) -> FloatArray:
    """Return the gates of a prompt that holds these blocks alone: the first row is the prefix's."""
    return gates if len(gates) == 1 else gates[[0, *(1 + slot for slot in slots)]]


def runs(sizes: Sequence[int], limit: int, *, padded: bool = False) -> Iterator[slice]:
    """Yield spans of consecutive places whose sizes add up to at most `limit`, or of one place.

    `padded`: each counts as the longest of its span, as attention within blocks lays them out.
    """
    start = total = longest = 0
    for place, size in enumerate(sizes):
        longest = max(longest, size)
        needed = (place - start + 1) * longest if padded else total + size
        if needed > limit and place > start:
            yield slice(start, place)
            start, total, longest = place, 0, size
        total += size
    if sizes:
        yield slice(start, len(sizes))
