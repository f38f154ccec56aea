"""What a step of training costs: the bank against one PEFT LoRA, slates against single candidates.

python -m benchmarks.adapter_training --json benchmarks/results/adapter_training.json
    [--config jobs/configs/ml-100k.yaml] [--rounds 5] [--labels 1000]

1. Tokens per CPU-second of a bank of 8 with gates, in both mixing modes, and of one PEFT LoRA of
   the same rank. Base model, prompts, mask, batch, loss and optimiser are the same.
2. Labelled candidates per CPU-second where a slate is one prompt, and where every candidate is
   its own prompt behind the same history.
3. With --labels: validation AUC of both forms after training on that many labels.

Prompts and CRM states are those of the run that --config describes; missing stages are run.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from benchmarks.quality.ground import Ground
from benchmarks.race import circumstances, race, summarise, write_result
from engine.config import EngineConfig, load_config
from engine.data.schema import part_name
from engine.metrics import ctr
from engine.models.base import load_base_model
from engine.models.packing import pack
from engine.models.personalized import PersonalizedLLM, stack_states
from engine.training.adapter_examples import AdapterExample, label_matrix, read_examples, slots_of
from engine.training.adapter_loop import build_model
from engine.types import MixingMode, SlatePrompt, Window

SLATES = 2
"""Slates of a step."""
VALIDATION_SLATES = 120


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description="Race the bank against one LoRA.")
    parser.add_argument("--json", required=True, help="file for the result")
    parser.add_argument("--config", default="jobs/configs/ml-100k.yaml")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--labels", type=int, default=0, help="labels to learn from; 0: no AUC")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    config = load_config(options.config)
    training, validation = read_run(config)
    full = [example for example in training if len(example.labels) == config.slates.max_size]
    result: dict[str, Any] = {
        "benchmark": "adapter_training", "command": " ".join(sys.argv[1:]), **circumstances(),
        "base_model": config.base_model.name, "slates_per_step": SLATES,
        "tokens_per_slate": float(np.mean([each.num_tokens for each in full])),
    }
    result["bank_against_lora"] = race_adapters(config, full, options.rounds)
    result["slates_against_candidates"] = race_forms(config, full, options.rounds)
    write_result(result, options.json)
    if options.labels:
        result["auc"] = train_forms(config, full, validation, options.labels)
        write_result(result, options.json)
    print(json.dumps(result, indent=2))
    return 0


def read_run(config: EngineConfig) -> tuple[list[AdapterExample], list[AdapterExample]]:
    """Return the prompts of the bank's window and of validation; run stages that are missing."""
    import ray

    from engine.stages.prompts import build_prompts
    from jobs.start import configure_logging, start_ray

    configure_logging()
    start_ray()
    ground = Ground(config)
    scores = ground.states().scores
    prompts = build_prompts(
        ground.root, config, ground.histories, ground.slates, ground.item_text
    )
    ray.shutdown()
    parts = range(config.histories.num_partitions)
    files = ([prompts.path(part_name("prompts", k)) for k in parts],
             [scores.path(part_name("scores", k)) for k in parts])
    return read_examples(*files, (Window.BANK,)), read_examples(*files, (Window.VALIDATION,))


# ----- steps


class Trainer:
    """A model's optimiser step on some prompts, in plain PyTorch."""

    def __init__(self, config: EngineConfig, example: AdapterExample) -> None:
        torch.manual_seed(config.run.seed)
        self.model = build_model(config, example).train()
        self.optimiser = torch.optim.AdamW([
            {"params": list(parameters.values()), "lr": config.adapters.rates[part]}
            for part, parameters in self.model.adapter_parts().items()
        ], weight_decay=0.0)

    def step(self, examples: Sequence[AdapterExample]) -> float:
        """Learn from the examples; return their tokens."""
        batch = pack([each.prompt for each in examples], pad_id=self.model.pad_id)
        labels_BM = torch.from_numpy(label_matrix(examples))
        *_, losses_BM = self.model(batch, stack_states([each.crm for each in examples]), labels_BM)
        update(self.optimiser, losses_BM[batch.is_candidate_BM].mean())
        return float(sum(each.num_tokens for each in examples))


class PeftTrainer:
    """The same step for one LoRA by PEFT: same mask, same two answer rows of the head."""

    def __init__(self, config: EngineConfig, like: PersonalizedLLM) -> None:
        torch.manual_seed(config.run.seed)
        _, base = load_base_model(config.base_model)
        self.answers, self.pad_id = like.answers, like.pad_id
        self.model: Any = get_peft_model(base, LoraConfig(
            r=config.bank.rank, lora_alpha=int(config.bank.alpha),
            target_modules=list(config.bank.targets), lora_dropout=config.bank.dropout,
        )).train()
        parameters = [each for each in self.model.parameters() if each.requires_grad]
        self.optimiser = torch.optim.AdamW(
            parameters, lr=config.adapters.learning_rate, weight_decay=0.0
        )

    def step(self, examples: Sequence[AdapterExample]) -> float:
        """Learn from the examples; return their tokens."""
        batch = pack([each.prompt for each in examples], pad_id=self.pad_id)
        labels_BM = torch.from_numpy(label_matrix(examples))
        base = self.model.get_base_model()
        hidden_BTD = base.get_decoder()(
            input_ids=batch.input_ids_BT, attention_mask=batch.mask_B1TT,
            position_ids=batch.positions_BT, use_cache=False,
        ).last_hidden_state
        index_BMD = batch.answers_BM[:, :, None].expand(-1, -1, hidden_BTD.shape[-1])
        head_VD = base.get_output_embeddings().weight
        direction_D = head_VD[self.answers.positive] - head_VD[self.answers.negative]
        logits_BM = hidden_BTD.gather(1, index_BMD).float() @ direction_D.float()
        losses_BM = F.binary_cross_entropy_with_logits(logits_BM, labels_BM, reduction="none")
        update(self.optimiser, losses_BM[batch.is_candidate_BM].mean())
        return float(sum(each.num_tokens for each in examples))


def update(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take one step down the gradient."""
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def trainable(model: nn.Module) -> int:
    """Return the number of parameters that learn."""
    return sum(each.numel() for each in model.parameters() if each.requires_grad)


def in_turn(
    step: Callable[[Sequence[AdapterExample]], float], examples: Sequence[AdapterExample]
) -> Callable[[], float]:
    """Return a lap that takes the next SLATES examples; every subject sees the same ones."""
    place = 0

    def lap() -> float:
        nonlocal place
        chosen = [examples[(place + k) % len(examples)] for k in range(SLATES)]
        place += SLATES
        return step(chosen)

    return lap


# ----- 1. bank against one LoRA


def race_adapters(
    config: EngineConfig, examples: Sequence[AdapterExample], rounds: int
) -> dict[str, Any]:
    """Return tokens per CPU-second of both mixing modes and of PEFT's LoRA."""
    banks = {
        mode.value: Trainer(with_mixing(config, mode), examples[0]) for mode in MixingMode
    }
    lora = PeftTrainer(config, next(iter(banks.values())).model)
    subjects = {"peft_lora": in_turn(lora.step, examples)}
    subjects |= {name: in_turn(bank.step, examples) for name, bank in banks.items()}
    found = summarise(race(subjects, rounds), "peft_lora", "tokens")
    for name, model in [("peft_lora", lora.model), *((n, b.model) for n, b in banks.items())]:
        found[name]["trainable_parameters"] = trainable(model)
    return found


def with_mixing(config: EngineConfig, mixing: MixingMode) -> EngineConfig:
    """Return the settings with another mixing mode."""
    return config.model_copy(update={"bank": config.bank.model_copy(update={"mixing": mixing})})


# ----- 2. and 3. slates against single candidates


def singles(example: AdapterExample) -> list[AdapterExample]:
    """Return each candidate of a slate as a prompt of its own."""
    return [
        AdapterExample(
            example.slate_id, example.user_id, example.window, slot,
            SlatePrompt(example.prompt.prefix, [block]), example.labels[slot : slot + 1],
            slots_of(example.crm, slot, 1),
        )
        for slot, block in enumerate(example.prompt.blocks)
    ]


def race_forms(
    config: EngineConfig, examples: Sequence[AdapterExample], rounds: int
) -> dict[str, Any]:
    """Return labelled candidates per CPU-second; one model learns from both forms in turn."""
    trainer = Trainer(config, examples[0])

    def slates(chosen: Sequence[AdapterExample]) -> float:
        trainer.step(chosen)
        return float(sum(len(each.labels) for each in chosen))

    def candidates(chosen: Sequence[AdapterExample]) -> float:
        alone = [single for each in chosen for single in singles(each)]
        trainer.step(alone)
        return float(len(alone))

    subjects = {"candidates": in_turn(candidates, examples), "slates": in_turn(slates, examples)}
    return summarise(race(subjects, rounds), "candidates", "labels")


def train_forms(
    config: EngineConfig, training: Sequence[AdapterExample],
    validation: Sequence[AdapterExample], num_labels: int,
) -> dict[str, Any]:
    """Return validation AUC and cost of both forms after the same labels in the same order."""
    order = np.random.default_rng(config.run.seed).permutation(len(training))
    size = config.slates.max_size
    chosen = [training[place] for place in order[: -(-num_labels // size)]]
    forms: dict[str, Callable[[AdapterExample], list[AdapterExample]]] = {
        "slates": lambda each: [each], "candidates": singles,
    }
    found = {}
    for name, form in forms.items():
        trainer = Trainer(config, training[0])
        cpu_s, wall_s, tokens = time.process_time(), time.perf_counter(), 0.0
        for start in range(0, len(chosen), SLATES):
            step = [part for each in chosen[start : start + SLATES] for part in form(each)]
            tokens += trainer.step(step)
        cost = {"cpu_s": time.process_time() - cpu_s, "wall_s": time.perf_counter() - wall_s}
        found[name] = {
            "labels": sum(len(each.labels) for each in chosen), "training_tokens": tokens, **cost,
            **validate(trainer.model, validation[:VALIDATION_SLATES], config),
        }
    return found


def validate(
    model: PersonalizedLLM, examples: Sequence[AdapterExample], config: EngineConfig
) -> dict[str, Any]:
    """Return the AUC on validation slates with its interval over users."""
    model.eval()
    logits = [
        model.score([each.prompt], [model.gates(each.crm)])[0] for each in examples
    ]
    users = np.concatenate([np.repeat(each.user_id, len(each.labels)) for each in examples])
    rows = ctr.Rows.of(users, np.concatenate([each.labels for each in examples]))
    measured = ctr.measure(rows, np.concatenate(logits), num_draws=1000, seed=config.run.seed)
    interval = measured["auc"].interval()
    return {"validation_rows": len(rows), "validation_users": rows.num_users,
            "auc": interval and interval.to_json()}


if __name__ == "__main__":
    sys.exit(main())
