"""What an answer costs: mixes beside the bare model, candidates behind one prefix.

python -m benchmarks.serving --json benchmarks/results/serving.json
    [--model cache/models/smollm2-135m-instruct] [--rounds 5] [--batch 16] [--threads 2]

1. Prompts per CPU-second of a batch in which every user has another mix of a bank of 8, in both
   mixing modes: to the bare base model, to PEFT with one named LoRA for each user
   (`adapter_names`), and to PEFT that combines the 8 into one for each user of the batch
   (`add_weighted_adapter`), which the next batch has to do again.
2. Candidates per CPU-second of one request, M candidates behind one prefix, to M prompts of their
   own; beside it the ratio of the tokens, which is the most that can be won, and how far the
   logits are apart.
3. The same request once more, its prefix kept from the first time.

Prompts are random tokens: their content changes no time.
"""

import argparse
import json
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from benchmarks.race import circumstances, race, summarise, write_result
from engine.config import BankConfig, BaseModelConfig, PromptConfig
from engine.models.base import load_base_model
from engine.models.personalized import PersonalizedLLM
from engine.types import FloatArray, IntArray, MixingMode, SlatePrompt

PREFIX, BLOCK = 300, 28
"""Tokens of the shared part, and of a candidate."""
CANDIDATES = (10, 50, 200)
ALONE = 16
"""Prompts of their own that share a forward pass."""
STATE_DIMS = (64, 128)
"""Widths of the CRM's states: the gates' cost beside the model's is nothing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description="Race answers against the bare model and peers.")
    parser.add_argument("--json", required=True, help="file for the result")
    parser.add_argument("--model", default="cache/models/smollm2-135m-instruct")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16, help="users of a batch")
    parser.add_argument("--candidates", type=int, nargs="+", default=CANDIDATES)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    base = BaseModelConfig(name=options.model, dtype=options.dtype)
    result: dict[str, Any] = {
        "benchmark": "serving", "command": " ".join(sys.argv[1:]), **circumstances(),
        "base_model": options.model, "dtype": options.dtype, "batch": options.batch,
        "prefix_tokens": PREFIX, "candidate_tokens": BLOCK,
    }
    result["mixes"] = race_mixes(base, options.batch, options.rounds)
    write_result(result, options.json)
    result["candidates"] = [
        race_candidates(base, candidates, options.rounds) for candidates in options.candidates
    ]
    write_result(result, options.json)
    print(json.dumps(result, indent=2))
    return 0


# ----- models and prompts


@dataclass(frozen=True, slots=True)
class Users:
    """Prompts of one candidate, each of another user with another mix."""

    prompts: list[SlatePrompt]
    gates: list[FloatArray]

    @classmethod
    def draw(cls, model: PersonalizedLLM, number: int, seed: int = 0) -> "Users":
        """Return users with random tokens and gates."""
        rng = np.random.default_rng(seed)
        prompts = [SlatePrompt(tokens(rng, PREFIX), [tokens(rng, BLOCK)]) for _ in range(number)]
        return cls(prompts, [mix(rng, model) for _ in range(number)])


def tokens(rng: np.random.Generator, number: int) -> IntArray:
    """Return random token ids that stand for text."""
    return rng.integers(1_000, 40_000, number).astype(np.int32)


def mix(rng: np.random.Generator, model: PersonalizedLLM) -> FloatArray:
    """Return random gates [1, G, N]."""
    num_gates = len(model.blocks) * len(model.config.targets)
    weights = rng.dirichlet(np.ones(model.config.num_adapters), (1, num_gates))
    return weights.astype(np.float32)


def bank_model(base: BaseModelConfig, mixing: MixingMode) -> PersonalizedLLM:
    """Return the base model with a bank of 8 whose adapters all do something."""
    torch.manual_seed(0)
    tokenizer, frozen = load_base_model(base)
    bank = BankConfig(mixing=mixing)
    model = PersonalizedLLM(frozen, tokenizer, bank, PromptConfig(), STATE_DIMS)
    for name, parameter in model.adapter_parts()["bank"].items():
        if name.endswith("b_NRO"):
            torch.nn.init.normal_(parameter, std=0.01)
    return model.requires_grad_(False).eval()


# ----- 1. users with other mixes in one batch


def race_mixes(base: BaseModelConfig, batch: int, rounds: int) -> dict[str, Any]:
    """Return prompts per CPU-second of the bare model, of both mixing modes and of PEFT."""
    models = {mode.value: bank_model(base, mode) for mode in MixingMode}
    first = next(iter(models.values()))
    users = Users.draw(first, batch)

    def ours(model: PersonalizedLLM, gates: list[FloatArray] | None) -> Callable[[], float]:
        return lambda: float(len(model.score(users.prompts, gates)))

    peft = PeftModels(base, first.config, users)
    subjects: dict[str, Callable[[], float]] = {"bare": ours(first, None)}
    subjects |= {name: ours(model, users.gates) for name, model in models.items()}
    subjects |= {"peft_adapter_names": peft.named, "peft_add_weighted_adapter": peft.combined}
    found = summarise(race(subjects, rounds), "bare", "prompts")
    return {**found, "floating_point_share": bare_share(first)}


def bare_share(model: PersonalizedLLM) -> float:
    """Return the base's part of the multiplications: the ratio to it that arithmetic allows.

    Weights of the linear layers alone; attention, the same for both, would raise it.
    """
    bank = sum(each.numel() for each in model.adapter_parts()["bank"].values())
    layers = model.base.get_decoder().layers
    base = sum(int(each.numel()) for each in layers.parameters() if each.dim() == 2)
    return base / (base + bank)


class PeftModels:
    """PEFT's two ways to give every user of a batch another LoRA."""

    def __init__(self, base: BaseModelConfig, bank: BankConfig, users: Users) -> None:
        _, frozen = load_base_model(base)
        lora = LoraConfig(
            r=bank.rank, lora_alpha=int(bank.alpha), target_modules=list(bank.targets),
            init_lora_weights=False,
        )
        self._bank = [f"meta-{number}" for number in range(bank.num_adapters)]
        self._own = [f"user-{number}" for number in range(len(users.prompts))]
        self.model: Any = get_peft_model(frozen, lora, adapter_name=self._bank[0])
        for name in (*self._bank[1:], *self._own):
            self.model.add_adapter(name, lora)
        self.model.requires_grad_(False).eval()
        rows = [np.concatenate([each.prefix, *each.blocks]) for each in users.prompts]
        self._input_ids_BT = torch.from_numpy(np.stack(rows).astype(np.int64))
        # PEFT weighs whole adapters: one weight for all layers is the nearest it has.
        self._weights = [gates[0].mean(axis=0).tolist() for gates in users.gates]

    def named(self) -> float:
        """Answer each prompt under a LoRA of its own that is there already."""
        return self._answer(self._own)

    def combined(self) -> float:
        """Combine the bank for each user, then answer."""
        names = [f"mixed-{number}" for number in range(len(self._weights))]
        for name, weights in zip(names, self._weights, strict=True):
            self.model.add_weighted_adapter(
                self._bank, weights, adapter_name=name, combination_type="linear"
            )
        answered = self._answer(names)
        for name in names:
            self.model.delete_adapter(name)
        return answered

    @torch.inference_mode()
    def _answer(self, names: list[str]) -> float:
        """Run the model up to the last position's logits."""
        self.model(input_ids=self._input_ids_BT, adapter_names=names, logits_to_keep=1)
        return float(len(names))


# ----- 2. and 3. candidates behind one prefix


def race_candidates(base: BaseModelConfig, candidates: int, rounds: int) -> dict[str, Any]:
    """Return candidates per CPU-second behind one prefix, behind a kept one, and alone."""
    model = bank_model(base, MixingMode.SUM_OF_PRODUCTS)
    rng = np.random.default_rng(candidates)
    prefix, gates = tokens(rng, PREFIX), mix(rng, model)
    blocks = [tokens(rng, BLOCK) for _ in range(candidates)]
    [kept] = model.read_prefixes([prefix], [gates])
    logits: dict[str, FloatArray] = {}

    def alone() -> float:
        found = [
            logit for part in parts(blocks, ALONE)
            for logit in model.score(
                [SlatePrompt(prefix, [block]) for block in part], [gates] * len(part)
            )
        ]
        logits["alone"] = np.concatenate(found)
        return float(candidates)

    def behind() -> float:
        states = model.read_prefixes([prefix], [gates])
        [logits["behind"]] = model.score_behind(states, [blocks], [gates])
        return float(candidates)

    def again() -> float:
        [logits["again"]] = model.score_behind([kept], [blocks], [gates])
        return float(candidates)

    memory_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    behind()
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_kib
    found = summarise(race({"alone": alone, "behind": behind, "again": again}, rounds),
                      "alone", "candidates")
    token_ratio = candidates * (PREFIX + BLOCK) / (PREFIX + candidates * BLOCK)
    return {
        "candidates": candidates, **found, "token_ratio": token_ratio,
        "share_of_token_ratio": found["behind"]["ratio_to_alone"] / token_ratio,
        "largest_difference": float(np.abs(logits["behind"] - logits["alone"]).max()),
        "spread_of_logits": float(logits["alone"].std()),
        "peak_memory_grew_mib": grown_kib / 1024,
    }


def parts(blocks: Sequence[IntArray], size: int) -> Iterator[Sequence[IntArray]]:
    """Yield runs of blocks."""
    for start in range(0, len(blocks), size):
        yield blocks[start : start + size]


if __name__ == "__main__":
    sys.exit(main())
