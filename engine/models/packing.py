"""Prompts -> one padded batch: a shared prefix and candidate blocks that do not see each other.

    tokens     prefix | block 1 | block 2 | ... | padding
    segment    0      | 1       | 2       | ... | 0
    position   0..P-1 | P..     | P..     | ... | 0

A token sees its own segment and the prefix, never ahead. So a block's states are those of
prefix + block alone, and one pass scores (or trains on) all candidates of a slate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from engine.types import IntArray, SlatePrompt


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Tensors of B packed prompts with up to M candidates each."""

    input_ids_BT: Tensor
    positions_BT: Tensor
    segments_BT: Tensor
    mask_B1TT: Tensor
    """True where a token (third axis) sees another (fourth axis)."""
    answers_BM: Tensor
    """Index of each candidate's last token; 0 where there is no such candidate."""
    is_candidate_BM: Tensor


def pack(
    prompts: Sequence[SlatePrompt],
    *,
    pad_id: int,
    device: torch.device | str = "cpu",
    side: Literal["left", "right"] = "right",
) -> PackedBatch:
    """Lay out prompts as one batch, padded on one side to the longest."""
    lengths = [len(p.prefix) + sum(len(block) for block in p.blocks) for p in prompts]
    width, slots = max(lengths), max(len(p.blocks) for p in prompts)
    shape = (len(prompts), width)
    ids, positions = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64)
    segments, valid = np.zeros(shape, np.int64), np.zeros(shape, bool)
    answers = np.zeros((len(prompts), slots), np.int64)
    is_candidate = np.zeros((len(prompts), slots), bool)
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        start = width - length if side == "left" else 0
        pieces = [prompt.prefix, *prompt.blocks]
        sizes = [len(piece) for piece in pieces]
        span = slice(start, start + length)
        ids[row, span] = np.concatenate(pieces)
        segments[row, span] = np.repeat(np.arange(len(pieces)), sizes)
        offsets = [0] + [sizes[0]] * len(prompt.blocks)
        positions[row, span] = np.concatenate(
            [offset + np.arange(size) for offset, size in zip(offsets, sizes, strict=True)]
        )
        valid[row, span] = True
        answers[row, : len(prompt.blocks)] = start + np.cumsum(sizes)[1:] - 1
        is_candidate[row, : len(prompt.blocks)] = True
    segments_BT = torch.from_numpy(segments).to(device)
    return PackedBatch(
        torch.from_numpy(ids).to(device), torch.from_numpy(positions).to(device), segments_BT,
        visibility(segments_BT, torch.from_numpy(valid).to(device)),
        torch.from_numpy(answers).to(device), torch.from_numpy(is_candidate).to(device),
    )


def pack_row(
    pieces: Sequence[IntArray], starts: Sequence[int], *, device: torch.device | str = "cpu"
) -> PackedBatch:
    """Lay out pieces one after another in one row without padding, each as a candidate.

    `starts[m]` is the position of piece m's first token. What a token sees is left to a layout
    (attention.py): the mask is empty.
    """
    sizes = [len(piece) for piece in pieces]
    positions = np.concatenate([
        start + np.arange(size) for start, size in zip(starts, sizes, strict=True)
    ])
    rows = (np.concatenate(pieces), positions, np.repeat(1 + np.arange(len(pieces)), sizes))
    ids_1T, positions_1T, segments_1T = (
        torch.from_numpy(row.astype(np.int64))[None].to(device) for row in rows
    )
    answers_1M = torch.from_numpy(np.cumsum(sizes) - 1)[None].to(device)
    return PackedBatch(
        ids_1T, positions_1T, segments_1T, torch.empty(1, 1, 0, 0, dtype=torch.bool, device=device),
        answers_1M, torch.ones_like(answers_1M, dtype=torch.bool),
    )


def visibility(segments_BT: Tensor, valid_BT: Tensor) -> Tensor:
    """Return the mask [B, 1, T, T]; padding sees itself alone, so that no row is empty."""
    width = segments_BT.shape[1]
    before_TT = torch.ones(width, width, dtype=torch.bool, device=segments_BT.device).tril()
    same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    prefix_BTT = (segments_BT == 0)[:, None, :]
    seen_BTT = before_TT & (same_BTT | prefix_BTT) & valid_BT[:, None, :] & valid_BT[:, :, None]
    itself_TT = torch.eye(width, dtype=torch.bool, device=segments_BT.device)
    return (seen_BTT | itself_TT)[:, None]
