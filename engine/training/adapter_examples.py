"""Prompts and CRM states of one window, joined by slate: what the bank learns from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine import storage
from engine.errors import ArtifactError
from engine.types import CRMOutput, FloatArray, IntArray, SlatePrompt, Window


@dataclass(frozen=True, slots=True)
class AdapterExample:
    """One prompt with its labels [M] and what the frozen CRM says of its candidates."""

    slate_id: str
    user_id: str
    window: int
    first_slot: int
    prompt: SlatePrompt
    labels: IntArray
    crm: CRMOutput

    @property
    def num_tokens(self) -> int:
        """Return the length of the packed prompt."""
        return len(self.prompt.prefix) + sum(len(block) for block in self.prompt.blocks)


def read_examples(
    prompt_files: Sequence[str], state_files: Sequence[str], windows: Sequence[Window]
) -> list[AdapterExample]:
    """Return the examples of some windows, ordered by slate and slot.

    The two lists name the same partitions in the same order. The whole sample is held in memory:
    it is bounded by `adapters.max_slates` and the evaluation's row limits, not by the data.
    """
    examples = []
    for prompts, states in zip(prompt_files, state_files, strict=True):
        rows = storage.read_table(prompts)
        wanted = [int(window) for window in windows]
        rows = rows.filter(pc.field("window").isin(wanted))
        if rows.num_rows == 0:
            continue
        table = storage.read_table(states)
        outputs = states_of(table.filter(pc.field("slate_id").isin(rows["slate_id"])))
        examples += [_example(row, outputs, states) for row in rows.to_pylist()]
    return sorted(examples, key=lambda example: (example.slate_id, example.first_slot))


def states_of(table: pa.Table) -> dict[str, CRMOutput]:
    """Return the CRM output of each slate (attention left out)."""
    outputs = {}
    for row in table.to_pylist():
        logits = np.array(row["logits"], np.float32)
        none = np.zeros((len(logits), 0))
        outputs[row["slate_id"]] = CRMOutput(
            logits, np.array(row["user_state"], np.float32),
            np.array(row["target_states"], np.float32).reshape(len(logits), -1),
            none.astype(np.int32), none.astype(np.float32),
        )
    return outputs


def _example(row: dict[str, Any], outputs: dict[str, CRMOutput], source: str) -> AdapterExample:
    output = outputs.get(row["slate_id"])
    if output is None:
        raise ArtifactError(f"{source} has no CRM state for slate {row['slate_id']!r}")
    first, count = row["first_slot"], len(row["blocks"])
    blocks = [np.array(block, np.int32) for block in row["blocks"]]
    prompt = SlatePrompt(np.array(row["prefix"], np.int32), blocks)
    labels = np.array(row["labels"], np.int8)
    part = slots_of(output, first, count)
    return AdapterExample(
        row["slate_id"], row["user_id"], row["window"], first, prompt, labels, part
    )


def slots_of(output: CRMOutput, first: int, count: int) -> CRMOutput:
    """Return the output of some candidates of a slate."""
    span = slice(first, first + count)
    return CRMOutput(
        output.logits_M[span], output.user_state_D, output.target_states_MD[span],
        output.behaviors_MS[span], output.attention_MS[span],
    )


def crm_logit_matrix(examples: Sequence[AdapterExample]) -> FloatArray:
    """Return the CRM's logits [B, M], padded with zeros."""
    return _padded([example.crm.logits_M for example in examples])


def label_matrix(examples: Sequence[AdapterExample]) -> FloatArray:
    """Return labels [B, M], padded with zeros."""
    return _padded([example.labels for example in examples])


def _padded(rows: Sequence[IntArray | FloatArray]) -> FloatArray:
    matrix = np.zeros((len(rows), max(map(len, rows))), np.float32)
    for place, row in enumerate(rows):
        matrix[place, : len(row)] = row
    return matrix
