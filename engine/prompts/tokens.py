"""Text -> token ids: the base model's chat frame, plain text, and the two answer tokens."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from engine.config import PromptConfig
from engine.errors import PromptError

CONTENT = "\u0001content\u0001"
"""Marks the place of the user's message while a chat template is taken apart."""

PLAIN_FRAME = ("{system}\n\n", "\n")
"""Frame of a base model without a chat template."""

ANSWER_MARK = "\n"
"""Ends a candidate; the answer is the token after it."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Token ids before the user's message, and from its end to the start of the model's turn."""

    head: tuple[int, ...]
    tail: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answers:
    """Token ids of the two answers."""

    positive: int
    negative: int


def chat_frame(tokenizer: Any, system: str) -> Frame:
    """Take the tokenizer's own chat template apart around the user's message."""
    head, tail = PLAIN_FRAME[0].format(system=system), PLAIN_FRAME[1]
    if tokenizer.chat_template:
        messages = [
            {"role": "system", "content": system}, {"role": "user", "content": CONTENT},
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        head, mark, tail = text.partition(CONTENT)
        if not mark:
            raise PromptError("the chat template of the base model drops the user's message")
    return Frame(_encode_frame(tokenizer, head), _encode_frame(tokenizer, tail))


def _encode_frame(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


class TextEncoder:
    """Encodes plain text; a special token written in an item's title stays plain text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.encode = lru_cache(maxsize=200_000)(self._encode)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(
            self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        )


def answer_tokens(tokenizer: Any, config: PromptConfig) -> Answers:
    """Return the ids of the two answers, each exactly one token after ANSWER_MARK.

    Raises PromptError if an answer merges with the mark or takes more than one token.
    """
    mark = _encode_frame(tokenizer, ANSWER_MARK)
    ids = []
    for answer in (config.positive, config.negative):
        encoded = _encode_frame(tokenizer, ANSWER_MARK + answer)
        if encoded[:-1] != mark:
            raise PromptError(
                f"answer {answer!r} is not one token after {ANSWER_MARK!r}: "
                f"{encoded[len(mark):]}; choose prompt.positive and prompt.negative that are"
            )
        ids.append(encoded[-1])
    if ids[0] == ids[1]:
        raise PromptError(
            f"prompt.positive {config.positive!r} and prompt.negative {config.negative!r} "
            "share a token"
        )
    return Answers(*ids)
