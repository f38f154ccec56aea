"""Examples -> a trained CRM: CTR loss plus sampled softmax, on one or more processes.

    <examples>/examples/part-00000.safetensors   CRMRows of one partition
    <examples>/items.safetensors                 ItemTable, and `positives` by item index
    checkpoint: state/ (see checkpoints.py), weights.safetensors, curve.json
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engine import storage
from engine.config import CRMConfig, Section
from engine.models.crm import CRM, CRMShape, CRMTensors, to_tensors
from engine.models.crm_features import CRMBatch, CRMRows, ItemTable
from engine.models.crm_scorer import load_weights
from engine.training.checkpoints import checkpoint_name, load_state, save_state
from engine.training.crm_batches import LanePlan, LaneReader, blank_batch, merge_batches
from engine.training.engines import (
    ParameterGroup,
    linear_schedule,
    start_engine,
    trainable_weights,
)
from engine.training.session import Session, global_sum, share_of_global_mean, step_seed
from engine.types import FloatArray, IntArray

CURVE_EVERY = 20
"""Steps between points of the training curve."""


class CRMLoopSettings(Section):
    """Settings of one CRM training, as plain values."""

    crm: CRMConfig
    shape: dict[str, int]
    examples: str
    row_counts: tuple[int, ...]
    seed: int
    start: str | None = None
    """URI of the first weights; None: random ones."""


@dataclass(frozen=True, slots=True)
class Negatives:
    """The distribution that the sampled softmax draws from."""

    items_N: IntArray
    log_q_I: FloatArray
    """log of the chance of each item index; a large negative number where it is zero."""
    cumulative_N: FloatArray

    @classmethod
    def of(cls, positives_I: FloatArray, power: float) -> "Negatives":
        """Draw items in proportion to (positives ** power)."""
        items = np.flatnonzero(positives_I > 0)
        chances = positives_I[items].astype(np.float64) ** power
        chances = chances / chances.sum()
        log_q = np.full(len(positives_I), np.log(chances.min()), np.float32)
        log_q[items] = np.log(chances)
        return cls(items, log_q, np.cumsum(chances))

    def draw(self, count: int, seed: int, step: int) -> IntArray:
        """Return items, the same on every process."""
        points = np.random.default_rng([seed, 7, step]).random(count)
        places = np.searchsorted(self.cumulative_N, points).clip(0, len(self.items_N) - 1)
        return np.asarray(self.items_N[places])


def crm_loop(settings: dict[str, Any], session: Session) -> None:
    """Train on this process's lanes; every checkpoint holds the weights and the curve."""
    loop = CRMLoopSettings.model_validate(settings)
    plan = LanePlan(loop.row_counts, loop.crm.lanes, loop.crm.batch_size, loop.seed)
    steps = [(epoch, step) for epoch in range(loop.crm.epochs) for step in range(plan.steps(epoch))]
    trainer = CRMTrainer(loop, session, len(steps))
    first = trainer.resume(session.resume_folder())
    for number, (batch, counted) in enumerate(_batches(loop, plan, session, steps[first:]), first):
        trainer.step(number, batch, counted)
        session.progress(number + 1, len(steps))
        if (number + 1) % loop.crm.checkpoint_every == 0 or number + 1 == len(steps):
            trainer.save(number + 1)


def _batches(
    loop: CRMLoopSettings, plan: LanePlan, session: Session, steps: list[tuple[int, int]]
) -> Iterator[tuple[CRMBatch, bool]]:
    """Yield this process's share of each step, and whether it counts."""
    lanes = range(session.world_rank, plan.lanes, session.world_size)
    readers = [LaneReader(plan, lane, _Loader(loop.examples)) for lane in lanes]
    for epoch, step in steps:
        parts = [reader.batch(epoch, step, loop.crm.max_recent) for reader in readers]
        present = [part for part in parts if part is not None]
        yield (merge_batches(present), True) if present else (blank_batch(), False)


@dataclass(frozen=True, slots=True)
class _Loader:
    """Reads one partition of the examples."""

    examples: str

    def __call__(self, partition: int) -> CRMRows:
        return read_rows(example_uri(self.examples, partition))


class CRMTrainer:
    """Model, engine and curve of one process."""

    def __init__(self, loop: CRMLoopSettings, session: Session, total_steps: int) -> None:
        self._loop, self._session = loop, session
        tensors = storage.read_tensors(storage.join(loop.examples, "items.safetensors"))
        torch.manual_seed(loop.seed)
        model = CRM(CRMShape(**loop.shape), loop.crm)
        if loop.start is not None:
            load_weights(model, storage.read_tensors(loop.start), loop.start)
        self._engine = start_engine(
            model, parameter_groups(model, loop.crm), zero_stage=loop.crm.zero_stage,
            micro_batch=loop.crm.batch_size // session.world_size, accumulation=1,
            max_grad_norm=5.0, schedule=linear_schedule(total_steps, 0.05),
        )
        self._table = to_tensors(item_table_of(tensors), self._engine.device)
        self._negatives = Negatives.of(tensors["positives"], 0.75)
        self._log_q_I = torch.as_tensor(self._negatives.log_q_I, device=self._engine.device)
        self._curve: list[list[float]] = []
        self._recent: list[tuple[float, float]] = []

    def resume(self, folder: Path | None) -> int:
        """Restore the last checkpoint; return the first step to run."""
        if folder is None:
            return 0
        state = load_state(self._engine, folder, self._session)
        self._curve, self._recent = state["curve"], state["recent"]
        return int(state["step"])

    def step(self, number: int, batch: CRMBatch, counted: bool) -> None:
        """Run one optimiser step."""
        loop, size = self._loop, self._session.world_size
        torch.manual_seed(step_seed(loop.seed, number, self._session.world_rank))
        inputs = to_tensors(batch, self._engine.device)
        drawn = self._negatives.draw(loop.crm.retrieval_negatives, loop.seed, number)
        drawn_N = torch.as_tensor(drawn, device=self._engine.device)
        found = self._engine(inputs, self._table, drawn_N)
        ctr, retrieval, positives = crm_losses(
            found, inputs["labels_B"], inputs["items_B"], drawn_N, self._log_q_I
        )
        rows_count = global_sum(len(batch.items_B) * counted)
        positive_count = max(1.0, global_sum(positives * counted))
        loss = (
            share_of_global_mean(ctr, rows_count, world_size=size)
            + loop.crm.retrieval_weight
            * share_of_global_mean(retrieval, positive_count, world_size=size)
        ) * float(counted)
        self._engine.backward(loss)
        self._engine.step()
        self._record(
            number, global_sum(float(ctr.detach()) * counted) / rows_count,
            global_sum(float(retrieval.detach()) * counted) / positive_count,
        )

    def _record(self, number: int, ctr: float, retrieval: float) -> None:
        self._recent.append((ctr, retrieval))
        if (number + 1) % CURVE_EVERY == 0:
            self._curve.append([number + 1, *np.mean(self._recent, axis=0).tolist()])
            self._recent = []

    def save(self, step: int) -> None:
        """Report a checkpoint after `step` steps."""
        weights = trainable_weights(self._engine)
        with tempfile.TemporaryDirectory() as folder:
            save_state(self._engine, Path(folder), self._session, step,
                       curve=self._curve, recent=self._recent)
            if self._session.world_rank == 0:
                storage.write_tensors(storage.join(folder, "weights.safetensors"), weights)
                storage.write_json(storage.join(folder, "curve.json"), self._curve)
            ctr = self._curve[-1][1] if self._curve else 0.0
            self._session.report({"crm/ctr_loss": ctr}, Path(folder), checkpoint_name(step))


def parameter_groups(model: CRM, config: CRMConfig) -> list[ParameterGroup]:
    """Return the embedding tables (their own weight decay) and everything else."""
    tables = [model.user_ids, model.user_codes, model.item_ids, model.item_codes]
    embeddings = [parameter for table in tables for parameter in table.parameters()]
    ours = {id(parameter) for parameter in embeddings}
    others = [parameter for parameter in model.parameters() if id(parameter) not in ours]
    rate = config.learning_rate
    return [
        ParameterGroup("embeddings", embeddings, rate, config.embedding_weight_decay),
        ParameterGroup("layers", others, rate, config.weight_decay),
    ]


def crm_losses(
    found: CRMTensors, labels_B: Tensor, items_B: Tensor, drawn_N: Tensor, log_q_I: Tensor
) -> tuple[Tensor, Tensor, int]:
    """Return the sum of CTR losses, the sum of retrieval losses and the number of positives.

    Retrieval: for each positive row, softmax of (state . vector - log q) over its own item and the
    drawn ones (log-Q correction, as in arXiv 1412.2007, section 3); a drawn copy of the own item
    is left out.
    """
    assert found.own_scores_B is not None
    assert found.drawn_scores_BN is not None
    ctr = functional.binary_cross_entropy_with_logits(found.logits_B, labels_B, reduction="sum")
    positive_B = labels_B > 0.5
    own_P = found.own_scores_B[positive_B] - log_q_I[items_B[positive_B]]
    drawn_PN = found.drawn_scores_BN[positive_B] - log_q_I[drawn_N]
    copies_PN = drawn_N[None] == items_B[positive_B][:, None]
    scores = torch.cat([own_P[:, None], drawn_PN.masked_fill(copies_PN, -torch.inf)], dim=1)
    retrieval = (torch.logsumexp(scores, dim=1) - own_P).sum()
    return ctr, retrieval, len(own_P)


def example_uri(examples: str, partition: int) -> str:
    """Return the URI of one partition's rows."""
    return storage.join(examples, f"examples/part-{partition:05d}.safetensors")


def write_rows(uri: str, rows: CRMRows) -> None:
    """Write rows as tensors."""
    storage.write_tensors(uri, {field.name: getattr(rows, field.name) for field in fields(rows)})


def read_rows(uri: str) -> CRMRows:
    """Read what `write_rows` wrote."""
    return CRMRows(**storage.read_tensors(uri))


def item_table_of(tensors: storage.Tensors) -> ItemTable:
    """Return the item table among some tensors."""
    return ItemTable(**{field.name: tensors[field.name] for field in fields(ItemTable)})
