"""Nouns and tensor letters that cross packages.

Tensor letters, as suffixes of names (`history_BL`):
B batch row, L history length, S short history, M candidates of a slate, T tokens, V vocabulary,
D width, G gates (layers x target matrices), N meta-LoRAs in the bank, R LoRA rank, I/O in/out
features of a matrix, P gate segments of a packed prompt.

An item is an index into the catalogue: 1 and up; 0 is the reserved unknown item.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer[Any]]
FloatArray = npt.NDArray[np.floating[Any]]

UNKNOWN = 0
"""The reserved index of an unknown item or user."""


class Window(IntEnum):
    """Part of the one timeline that an event falls in, by its time alone."""

    CRM = 0
    """[start, T0): trains the CRM."""
    BANK = 1
    """[T0, T1): trains the bank and its gates; the released CRM never saw it."""
    VALIDATION = 2
    """[T1, T2): everything is chosen here."""
    TEST = 3
    """[T2, end]: reported once."""


NO_WINDOW = -1
"""A row that is in no window is neither learned nor measured."""
EVALUATED = (Window.VALIDATION, Window.TEST)
"""Windows that nothing is trained on."""


class MixingMode(StrEnum):
    """How gates mix the bank; the published forms differ, so every report names it."""

    PRODUCT_OF_SUMS = "product_of_sums"
    SUM_OF_PRODUCTS = "sum_of_products"


class GateInput(StrEnum):
    """What a gate reads from the CRM."""

    USER = "user"
    """The user state: independent of the candidate, so candidates share the prefix."""
    TARGET = "target"
    """The target-aware last hidden layer: one adapter for each (user, candidate)."""
    HYBRID = "hybrid"
    """The user state for the prefix, the target-aware layer for each candidate's tokens."""


class HistoryScope(StrEnum):
    """Whose text history a prompt shows."""

    SLATE = "slate"
    """One history for all candidates of a request."""
    CANDIDATE = "candidate"
    """The past interactions most relevant to each candidate (the paper's form)."""


class FeedbackKind(IntEnum):
    """Where a row's label comes from."""

    EXPLICIT = 0
    """A rating or a label column."""
    REPEAT = 1
    """Implicit feedback: an item that the user had before, or a negative drawn from such items."""
    NEW = 2
    """Implicit feedback: an item new to the user, or a negative drawn from such items."""


class AnswerMode(StrEnum):
    """Which models answered a request."""

    FULL = "full"
    CRM = "crm"
    POPULAR = "popular"


@dataclass(frozen=True, slots=True)
class Timeline:
    """Cut times in seconds: CRM [start, t0), bank [t0, t1), validation [t1, t2), test [t2, end]."""

    start_s: int
    t0_s: int
    t1_s: int
    t2_s: int
    end_s: int

    def window_of(self, timestamps_s: IntArray) -> IntArray:
        """Return the Window value of each time."""
        cuts = np.array([self.t0_s, self.t1_s, self.t2_s])
        return np.searchsorted(cuts, timestamps_s, side="right").astype(np.int8)

    def windows_of(self, user_id: str, timestamps_s: IntArray) -> IntArray:
        """Return the Window value of each of a user's rows: by its time alone."""
        return self.window_of(timestamps_s)


class Windows(Protocol):
    """Who says what a user's rows are for."""

    def windows_of(self, user_id: str, timestamps_s: IntArray) -> IntArray:
        """Return the window of each row, or NO_WINDOW, int8 [L]."""


@dataclass(frozen=True, slots=True)
class History:
    """One user's events, oldest first; equal times are ordered by item. All arrays have length L.

    An event without feedback of its own (implicit) has label 1 and rating 1.
    """

    items: IntArray
    ratings: FloatArray
    labels: IntArray
    timestamps_s: IntArray

    def __len__(self) -> int:
        return len(self.items)

    def head(self, length: int) -> "History":
        """Return the oldest `length` events."""
        return History(
            self.items[:length], self.ratings[:length], self.labels[:length],
            self.timestamps_s[:length],
        )

    def tail(self, length: int) -> "History":
        """Return the newest `length` events."""
        start = max(0, len(self) - length)
        return History(
            self.items[start:], self.ratings[start:], self.labels[start:],
            self.timestamps_s[start:],
        )

    def before(self, timestamp_s: int) -> "History":
        """Return the events strictly before a time."""
        return self.head(int(np.searchsorted(self.timestamps_s, timestamp_s, side="left")))

    @staticmethod
    def empty() -> "History":
        """Return a history without events."""
        return History(
            np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.int8),
            np.zeros(0, np.int64),
        )


@dataclass(frozen=True, slots=True)
class Profile:
    """What is known of a user beside the history; both are empty for a guest."""

    user_id: str = ""
    fields: Mapping[str, Sequence[str]] | None = None
    """Field name -> values (`{"gender": ["F"], "occupation": ["writer"]}`)."""

    @property
    def has_values(self) -> bool:
        """Tell whether any field has a value."""
        return any((self.fields or {}).values())


@dataclass(frozen=True, slots=True)
class SlatePrompt:
    """Token ids of one prompt: a shared prefix and one block for each of M candidates.

    The answer position of a candidate is the last token of its block.
    """

    prefix: IntArray
    blocks: Sequence[IntArray]


@dataclass(frozen=True, slots=True)
class CRMOutput:
    """What the CRM yields for one user and M candidates (float32)."""

    logits_M: FloatArray
    user_state_D: FloatArray
    """Independent of the candidates."""
    target_states_MD: FloatArray
    """Target-aware last hidden layer."""
    behaviors_MS: IntArray
    """Positions (in the history given) of the past events that target attention read; -1 pads."""
    attention_MS: FloatArray
    """Weight of each of them."""


@dataclass(frozen=True, slots=True)
class AnswerList:
    """What one release answered to a request."""

    release_id: str
    mode: AnswerMode
    item_ids: Sequence[str]
    """Best first."""
    is_shadow: bool = False
    """Whether another answer was given in its place, so that nobody saw it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a user did after an answer."""

    liked: Sequence[str]
    """Item of each event with label 1; an item may stand more than once."""
    num_disliked: int


@dataclass(frozen=True, slots=True)
class AnsweredRequest:
    """One request of a user: the answer that was given, those beside it, and what followed."""

    user_id: str
    answers: Sequence[AnswerList]
    outcome: Outcome | None
    """None: the answer that was given is not known, so neither is what followed."""
