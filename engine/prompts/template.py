"""Profile, history and candidates -> the text that the language model reads, as token ids.

    <chat frame: system>  You predict ...
    <chat frame: user>    About the user: gender F; age 24.
                          Average rating 3.6 over 85 movies; liked 47%.
                          History, newest last:
                          - Fargo: 5
                          ...
                          For each movie: will the user enjoy it?
    <chat frame: answer>                                                 <- end of the prefix
                          Heat (1995; Action)                            <- a block; then Yes or No

In slate scope all candidates of a request stand behind one prefix, which is chosen without looking
at them. In candidate scope each has its own prefix, chosen for it. Pieces are encoded apart and
joined, so a packed prompt and a separate one have the same tokens.
"""

import hashlib
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.config import PromptConfig, SourceConfig
from engine.data.catalogue import Catalogue
from engine.errors import PromptError
from engine.prompts.tokens import ANSWER_MARK, TextEncoder, chat_frame
from engine.retrieval.item_text import liked_centre
from engine.types import (
    FloatArray,
    GateInput,
    History,
    HistoryScope,
    IntArray,
    Profile,
    SlatePrompt,
)

ITEM_TOKENS = PROFILE_TOKENS = 128
"""Tokens of an item's text, and of a profile's, that a prompt shows: one that is endless must not
take the room of others."""


@dataclass(frozen=True, slots=True)
class BuiltPrompt:
    """A prompt, and which past events its text shows."""

    prompt: SlatePrompt
    shown: IntArray
    """Positions in the history, oldest first."""
    cut: int = 0
    """Chosen past events that did not fit."""


class PromptBuilder:
    """Builds prompts for one catalogue and base model."""

    def __init__(
        self,
        config: PromptConfig,
        source: SourceConfig,
        tokenizer: Any,
        catalogue: Catalogue,
        item_vectors: FloatArray,
    ) -> None:
        """`item_vectors`: unit rows by item index, [items + 1, dims]."""
        self.config, self.source = config, source
        self.catalogue, self.item_vectors = catalogue, item_vectors
        self.encoder = TextEncoder(tokenizer)
        self.frame = chat_frame(
            tokenizer,
            config.system.format(
                noun=config.noun, positive=config.positive, negative=config.negative
            ),
        )

    def with_items(self, catalogue: Catalogue, item_vectors: FloatArray) -> "PromptBuilder":
        """Return the same builder over another catalogue."""
        other = copy(self)
        other.catalogue, other.item_vectors = catalogue, item_vectors
        return other

    def digest(self) -> str:
        """Return a digest of a fixed request's tokens: it changes with text, frame or tokenizer."""
        example = History(
            np.ones(2, np.int32), np.array([1, 2], np.float32), np.array([0, 1], np.int8),
            np.array([1, 2], np.int64),
        )
        fields = dict.fromkeys(self.source.user_fields, ("value",))
        built = self.build_all(example, Profile("user", fields), np.array([1, 0]))
        pieces = [piece for each in built for piece in (each.prompt.prefix, *each.prompt.blocks)]
        pieces.append(np.array([ITEM_TOKENS, PROFILE_TOKENS]))
        return hashlib.sha256(b"|".join(p.astype(np.int64).tobytes() for p in pieces)).hexdigest()

    def build(self, history: History, profile: Profile, candidates: IntArray) -> BuiltPrompt:
        """Return one prompt for all candidates (slate scope)."""
        blocks = [self._block(int(item)) for item in candidates]
        return self._with_prefix(history, profile, liked_centre(history, self.item_vectors), blocks)

    def build_all(
        self,
        history: History,
        profile: Profile,
        candidates: IntArray,
        gate: GateInput = GateInput.USER,
    ) -> list[BuiltPrompt]:
        """Return the prompts of a request: one, or one per candidate.

        Candidates need prompts of their own where the text is theirs (candidate scope), and where
        the mix is (`target` gates).
        """
        if self.config.scope is HistoryScope.SLATE:
            is_apart = gate is GateInput.TARGET
            parts = np.split(candidates, len(candidates)) if is_apart else [candidates]
            return [self.build(history, profile, part) for part in parts]
        return [
            self._with_prefix(
                history, profile, self.item_vectors[int(item)], [self._block(int(item))]
            )
            for item in candidates
        ]

    # ----- which past events

    def _choose(self, history: History, focus: FloatArray) -> IntArray:
        """Return positions of past events: the newest, then those most similar to `focus`."""
        size = min(self.config.history_size, len(history))
        newest = min(size, max(0, round(self.config.history_size * self.config.recent_share)))
        older = len(history) - newest
        similarity = self.item_vectors[history.items[:older]] @ focus
        ranked = np.lexsort((-np.arange(older), -similarity))     # ties: the newer first
        relevant = ranked[: size - newest]
        return np.sort(np.concatenate([relevant, np.arange(older, len(history))])).astype(np.int32)

    # ----- text

    def _with_prefix(
        self,
        history: History,
        profile: Profile,
        focus: FloatArray,
        blocks: Sequence[IntArray],
    ) -> BuiltPrompt:
        """Join frame, profile and as much of the chosen history as fits, newest kept."""
        chosen = self._choose(history, focus)
        opening = [*self.frame.head, *self._user(history, profile)]
        question = self._text(f"For each {self.config.noun}: will the user {self.config.verb} it?")
        closing = [*question, *self.frame.tail]
        lines = [
            self._cut(*self._event_text(history, int(position)), ITEM_TOKENS) for position in chosen
        ]
        fixed = len(opening) + len(closing) + max(len(block) for block in blocks)
        room = self.config.max_tokens - fixed
        if room < 0:
            raise PromptError(
                f"all but the history takes {fixed} tokens, "
                f"prompt.max_tokens is {self.config.max_tokens}"
            )
        kept = _newest_that_fit([len(line) for line in lines], room)
        first = len(lines) - kept
        tokens = [*opening, *(t for line in lines[first:] for t in line), *closing]
        prefix = np.array(tokens, np.int32)
        return BuiltPrompt(SlatePrompt(prefix, blocks), chosen[first:], cut=first)

    def _cut(self, text: str, rest: str, limit: int) -> tuple[int, ...]:
        """Return the tokens of both, but no more than `limit` of the first where they are many."""
        tokens = self._text(text + rest)
        if len(tokens) <= limit:
            return tokens
        return (*self._text(text)[:limit], *self._text(rest))

    def _text(self, text: str) -> tuple[int, ...]:
        return self.encoder.encode(text)

    def _user(self, history: History, profile: Profile) -> tuple[int, ...]:
        """Return who the user is, and how much they did."""
        known = [f"{name} {', '.join(v)}" for name, v in (profile.fields or {}).items() if v]
        did = f"No {self.config.noun} yet.\n"
        if len(history):
            did = f"{self._rate_text(history)}History, newest last:\n"
        if not known:
            return self._text(did)
        return self._cut(f"About the user: {'; '.join(known)}.", f"\n{did}", PROFILE_TOKENS)

    def _rate_text(self, history: History) -> str:
        count = f"{len(history)} {self.config.noun}s"
        if self.source.label.kind == "implicit":
            return f"Chose {count} so far.\n"
        liked = f"liked {100 * history.labels.mean():.0f}%.\n"
        if not self.source.has_ratings:
            return f"Of {count} {liked}"
        return f"Average rating {history.ratings.mean():.1f} over {count}, {liked}"

    def _event_text(self, history: History, position: int) -> tuple[str, str]:
        """Return a past item, and what the user thought of it."""
        item = int(history.items[position])
        text = f"- {self.catalogue.titles[item]}{self._fields(item, self.config.history_fields)}"
        if self.source.label.kind == "implicit":
            return text, "\n"
        if self.source.has_ratings:
            return text, f": {history.ratings[position]:g}\n"
        answer = self.config.positive if history.labels[position] else self.config.negative
        return text, f": {answer}\n"

    def _block(self, item: int) -> IntArray:
        """Return the candidate; its last token is the answer position."""
        shown = self.catalogue.titles[item] + self._fields(item, self.config.candidate_fields)
        return np.array([*self._text(shown)[:ITEM_TOKENS], *self._text(ANSWER_MARK)], np.int32)

    def _fields(self, item: int, names: Sequence[str]) -> str:
        values = [", ".join(self.catalogue.fields[name][item]) for name in names]
        shown = "; ".join(value for value in values if value)
        return f" ({shown})" if shown else ""


def _newest_that_fit(sizes: Sequence[int], room: int) -> int:
    """Return how many of the last pieces fit into `room` together."""
    kept = 0
    for size in reversed(sizes):
        if size > room:
            break
        room -= size
        kept += 1
    return kept
