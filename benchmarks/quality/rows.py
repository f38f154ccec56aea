"""The rows that train a language model: what each changes of the shared configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Budget(StrEnum):
    """What a row has in common with the rows in slate scope."""

    SAMPLE = "sample"
    """The same slates, so in slate scope the same labels and tokens."""
    TOKENS = "tokens"
    """As many training tokens: fewer slates where each costs more."""


@dataclass(frozen=True, slots=True)
class Row:
    """One way to adapt the language model."""

    title: str
    settings: Mapping[str, Any]
    """Dotted names of the engine's configuration."""
    in_sample_crm: bool = False
    """Whether the CRM behind the gates was trained on the bank's own rows, too."""
    equal_size: bool = False
    """Whether the rank is chosen so that one LoRA has as many weights as bank and gates."""
    budget: Budget = Budget.SAMPLE
    references: tuple[str, ...] = field(default=())
    """Reference scores that come with the row (`evaluation.references`)."""

    @property
    def is_bank(self) -> bool:
        """Return whether there are several adapters to mix."""
        return "bank.num_adapters" not in self.settings

    @property
    def is_routed(self) -> bool:
        """Return whether users get different mixes."""
        return not {"bank.num_adapters", "bank.temperature"} & set(self.settings)

    @property
    def in_candidate_scope(self) -> bool:
        """Return whether every candidate has its own prompt."""
        return self.settings.get("prompt.scope") == "candidate"


_ONE = {"bank.num_adapters": 1}
_LARGE = {**_ONE, "bank.rank": 64, "bank.alpha": 128.0}
_TOKEN = {"bank.readout": "answer"}
_PAPER = {**_TOKEN, "adapters.loss": "answers"}
_TARGET = {**_PAPER, "bank.gate": "target", "prompt.scope": "candidate"}

ROWS: Mapping[str, Row] = {
    "bank-user": Row("bank, user gates", {}, references=("zero_shot", "shuffled")),
    "lora-8": Row("one LoRA, rank 8, answer token and labels alone (TALLRec's form)",
                  {**_ONE, **_PAPER}),
    "lora-64": Row("one LoRA, rank 64 (the bank's size)", {**_LARGE}),
    "lora-equal": Row("one LoRA, the size of bank and gates", {**_ONE}, equal_size=True),
    "bank-uniform": Row("bank, uniform gates", {"bank.temperature": 1e9}),
    "bank-hybrid": Row("bank, hybrid gates", {"bank.gate": "hybrid"}, references=("shuffled",)),
    "bank-token": Row(
        "bank, user gates, read at the answer token alone", {**_TOKEN}, references=("shuffled",)
    ),
    "bank-answers": Row(
        "bank, user gates, trained on the labels alone", {"adapters.loss": "answers"},
        references=("shuffled",),
    ),
    "bank-pairs": Row(
        "bank, user gates, trained on the order within slates alone", {"adapters.loss": "pairs"},
        references=("shuffled",),
    ),
    "bank-residual": Row(
        "bank, user gates, trained on the CRM's residuals", {"adapters.learn": "residuals"},
        references=("shuffled",),
    ),
    "bank-product": Row(
        "bank, user gates, product of sums", {"bank.mixing": "product_of_sums"},
        references=("shuffled",),
    ),
    "bank-in-sample": Row(
        "bank, user gates, CRM in sample", {}, in_sample_crm=True, references=("shuffled",)
    ),
    "bank-target-tokens": Row(
        "bank, target gates, candidate scope (the paper's form), equal tokens", {**_TARGET},
        budget=Budget.TOKENS, references=("shuffled",),
    ),
    "bank-target-labels": Row(
        "bank, target gates, candidate scope (the paper's form), equal labels", {**_TARGET},
        references=("shuffled",),
    ),
}
"""All mix by `sum_of_products` in slate scope, read a candidate from the mean of its tokens too
(`bank.readout: block`), and learn labels and the order within a slate (`adapters.loss: joint`),
unless the title says otherwise."""
