"""Stage 2 of Few2Many: prompts + frozen CRM states -> bank and gates, on every Ray Train worker.

A step takes one global batch of prompts. Each worker runs its share in micro-batches of similar
length; the loss is the sum over all labels of the batch divided by their count, so any number of
workers learns the same. A checkpoint holds DeepSpeed's state and what a release needs.
"""

import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine import storage
from engine.config import AdapterTrainingConfig, EngineConfig
from engine.errors import DataError
from engine.metrics.ctr import auc
from engine.models.base import load_base_model
from engine.models.packing import pack
from engine.models.personalized import STANDARD, PersonalizedLLM, stack_states
from engine.training.adapter_examples import (
    AdapterExample,
    crm_logit_matrix,
    label_matrix,
    read_examples,
)
from engine.training.anchor import Anchor
from engine.training.checkpoints import checkpoint_name, load_state, save_state
from engine.training.engines import (
    ParameterGroup,
    linear_schedule,
    start_engine,
    trainable_weights,
)
from engine.training.session import (
    Session,
    global_rows,
    global_sum,
    share_of_global_mean,
    step_seed,
)
from engine.types import FloatArray, IntArray, SlatePrompt, Window

log = logging.getLogger(__name__)

FIRST_LOOK = 64
"""Prompts whose states, without labels, tell the readout how states of this base model vary."""


@dataclass(frozen=True, slots=True)
class AdapterInputs:
    """Where a training reads; plain values, so that it travels to a worker."""

    prompt_files: tuple[str, ...]
    state_files: tuple[str, ...]
    crm_key: str
    """Key of the CRM whose states these are: a bank serves with no other."""
    parent: str | None = None
    """Folder of the bank that training goes on from, and is held near; None: a fresh one."""


def adapter_loop(settings: dict[str, Any], session: Session) -> None:
    """Train and report checkpoints; `settings`: {"config": ..., "inputs": ...}."""
    config = EngineConfig.model_validate(settings["config"])
    inputs = AdapterInputs(**settings["inputs"])
    examples = read_examples(inputs.prompt_files, inputs.state_files, (Window.BANK,))
    if not examples:
        raise DataError("no prompts in the bank window; check split.crm, at night night.roles.bank")
    torch.manual_seed(config.run.seed)
    model = build_model(config, examples[0])
    plan = BatchPlan(config.adapters, config.run.seed, [e.num_tokens for e in examples])
    first_look = [[examples[index].prompt for index in batch] for batch in plan.first_look()]
    anchor = start_weights(model, config, inputs.parent, first_look)
    engine = start_adapter_engine(model, config.adapters, plan, session.world_size)
    curve: list[dict[str, float]] = []
    first_step = 0
    resume = session.resume_folder()
    if resume is not None:
        first_step = load_state(engine, resume, session)["step"]
        curve = json.loads((resume / "curve.json").read_text())
    for step in range(first_step, plan.num_steps):
        torch.manual_seed(step_seed(config.run.seed, step, session.world_rank))
        batches = plan.micro_batches(step, session.world_rank, session.world_size)
        chosen = [[examples[index] for index in batch] for batch in batches]
        num_labels = sum(len(examples[index].labels) for index in plan.indices(step))
        curve.append({
            "step": step, "epoch": step // plan.steps_per_epoch,
            **train_step(engine, chosen, num_labels, session, config, anchor),
        })
        done = step + 1
        session.progress(done, plan.num_steps)
        if done % config.adapters.checkpoint_every == 0 or done == plan.num_steps:
            report(engine, config, inputs, session, done, curve)


def start_weights(
    model: PersonalizedLLM, config: EngineConfig, parent: str | None,
    first_look: Sequence[Sequence[SlatePrompt]],
) -> Anchor | None:
    """Let the model go on from its parent's folder, if there is one; return what holds it there."""
    if parent is None:
        model.standardise_readout(first_look)
        return None
    if model.readout is not None and not storage.exists(storage.join(parent, STANDARD)):
        log.info("%s has no %s: its readout is standardised anew", parent, STANDARD)
        model.standardise_readout(first_look)
    model.start_from(parent)
    if not config.night.anchor:
        return None
    return Anchor(model.adapter_parameters(), config.night.anchor)


def build_model(config: EngineConfig, example: AdapterExample) -> PersonalizedLLM:
    """Return the frozen base with a fresh bank and router, sized by the CRM states."""
    tokenizer, base = load_base_model(config.base_model)
    dims = len(example.crm.user_state_D), example.crm.target_states_MD.shape[1]
    return PersonalizedLLM(base, tokenizer, config.bank, config.prompt, dims)


class BatchPlan:
    """Which prompts form which step, worker and micro-batch: a pure function of the seed."""

    def __init__(self, config: AdapterTrainingConfig, seed: int, lengths: Sequence[int]) -> None:
        self.config, self.seed, self.lengths = config, seed, np.asarray(lengths)
        self.steps_per_epoch = -(-len(lengths) // config.batch_slates)
        self.num_steps = self.steps_per_epoch * config.epochs

    def indices(self, step: int) -> list[int]:
        """Return a global batch, shortest first; the last one of an epoch wraps round."""
        epoch, offset = divmod(step, self.steps_per_epoch)
        order = self._order(epoch)
        places = offset * self.config.batch_slates + np.arange(self.config.batch_slates)
        return self._shortest_first(order[places % len(order)])

    def micro_batches(self, step: int, world_rank: int, world_size: int) -> list[list[int]]:
        """Return this worker's micro-batches of a step; every worker has equally many.

        Prompts are dealt by length, to and fro, so that no worker waits long for another.
        """
        dealt = np.reshape(self.indices(step), (-1, world_size))
        dealt[1::2] = dealt[1::2, ::-1]
        mine: list[int] = dealt[:, world_rank].tolist()
        return _pieces(mine, self.micro_size(world_size))

    def first_look(self) -> list[list[int]]:
        """Return the first FIRST_LOOK prompts of the order, the same for every worker."""
        return _pieces(
            self._shortest_first(self._order(0)[:FIRST_LOOK]), self.config.micro_batch_slates
        )

    def micro_size(self, world_size: int) -> int:
        """Return the largest micro-batch within the limit that divides a worker's share."""
        share = self.config.batch_slates // world_size
        return max(s for s in range(1, self.config.micro_batch_slates + 1) if share % s == 0)

    def _order(self, epoch: int) -> IntArray:
        order: IntArray = np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths))
        return order

    def _shortest_first(self, indices_B: IntArray) -> list[int]:
        by_length = np.argsort(self.lengths[indices_B], kind="stable")
        sorted_B: list[int] = indices_B[by_length].tolist()
        return sorted_B


def _pieces(indices: list[int], size: int) -> list[list[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def start_adapter_engine(
    model: PersonalizedLLM, config: AdapterTrainingConfig, plan: BatchPlan, world_size: int
) -> Any:
    """Return a DeepSpeed engine with a rate each for bank, gates and readout."""
    parts = model.adapter_parts()
    micro = plan.micro_size(world_size)
    return start_engine(
        model,
        [ParameterGroup(name, list(parameters.values()), config.rates[name], config.weight_decay)
         for name, parameters in parts.items()],
        zero_stage=config.zero_stage, micro_batch=micro,
        accumulation=config.batch_slates // world_size // micro,
        max_grad_norm=config.max_grad_norm,
        schedule=linear_schedule(plan.num_steps, config.warmup_share),
    )


def train_step(
    engine: Any,
    batches: Sequence[Sequence[AdapterExample]],
    num_labels: int,
    session: Session,
    config: EngineConfig,
    anchor: Anchor | None = None,
) -> dict[str, float]:
    """Run one optimiser step; return its mean loss, what the gates did and what the anchor cost."""
    model: PersonalizedLLM = engine.module
    engine.train()
    loss_sum, weights, answers = 0.0, [], []
    held: dict[str, float] = {}
    for examples in batches:
        batch = pack([e.prompt for e in examples], pad_id=model.pad_id, device=model.device)
        states = stack_states([e.crm for e in examples], model.device)
        labels_BM = torch.from_numpy(label_matrix(examples)).to(model.device)
        offsets_BM = None
        if config.adapters.learn == "residuals":
            offsets_BM = torch.from_numpy(crm_logit_matrix(examples)).to(model.device)
        logits_BM, weights_BPGN, losses_BM = engine(
            batch, states, labels_BM=labels_BM, offsets_BM=offsets_BM, loss=config.adapters.loss,
        )
        loss = losses_BM[batch.is_candidate_BM].sum()
        share = share_of_global_mean(
            loss, num_labels, world_size=session.world_size, accumulation=len(batches)
        )
        if anchor is not None:
            pull = anchor.loss()
            share, held = share + pull, {"anchor": float(pull.detach())}
        engine.backward(share)
        engine.step()
        loss_sum += float(loss.detach())
        weights.append(weights_BPGN.detach()[:, 0])
        answers.append(torch.stack([labels_BM, logits_BM.detach()])[:, batch.is_candidate_BM])
    return {
        "loss": global_sum(loss_sum) / num_labels, **held, **gate_facts(torch.cat(weights)),
        **pair_facts(*global_rows(torch.cat(answers, dim=1).cpu().numpy())), "labels": num_labels,
        "tokens": global_sum(float(sum(e.num_tokens for batch in batches for e in batch))),
    }


def pair_facts(labels_N: FloatArray, logits_N: FloatArray) -> dict[str, float]:
    """Return how many pairs of a positive and a negative a step has, and how many are in order.

    The model answered before it learned them: in the first epoch their quotient is an AUC on rows
    that it has not seen (progressive validation).
    """
    positives = float(labels_N.sum())
    pairs = positives * (len(labels_N) - positives)
    in_order = pairs * auc(labels_N.astype(np.int8), logits_N) if pairs else 0.0
    return {"pairs": pairs, "pairs_in_order": in_order}


def gate_facts(weights_BGN: Tensor) -> dict[str, float]:
    """Return entropy (share of ln N), load range and spread over users of one worker's gates."""
    num_adapters = weights_BGN.shape[-1]
    entropy = -(weights_BGN * weights_BGN.clamp_min(1e-12).log()).sum(-1).mean()
    load_N = weights_BGN.mean((0, 1))
    mean_GN = weights_BGN.mean(0)
    return {
        "gate_entropy": float(entropy / np.log(max(2, num_adapters))),
        "gate_load_min": float(load_N.min()), "gate_load_max": float(load_N.max()),
        "gate_variation": float((weights_BGN - mean_GN).abs().sum(-1).mean() / 2),
    }


def report(
    engine: Any,
    config: EngineConfig,
    inputs: AdapterInputs,
    session: Session,
    step: int,
    curve: list[dict[str, float]],
) -> None:
    """Report one checkpoint: DeepSpeed's state, the bank's files and the curve (collective)."""
    model: PersonalizedLLM = engine.module
    weights = trainable_weights(engine)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_state(engine, folder, session, step)
        if session.world_rank == 0:
            model.save(str(folder), weights, inputs.crm_key, config.prompt)
            (folder / "curve.json").write_text(json.dumps(curve))
        session.report(
            {"loss": curve[-1]["loss"], "step": float(step)}, folder, checkpoint_name(step)
        )
