"""Attention inside the frozen model: PyTorch's own under a mask, or what a layout of tokens says.

    prefixes   p1 p1 p1 | p2 p2          each token sees what stands before it in its prefix
    blocks     a a | b b b | c           each sees all of its request's prefix, which was read
                                         before, and what stands before it in its block

Tokens of all requests stand in one row, without padding, so the linear layers work on nothing else.
A row of N block tokens behind P prefix tokens costs N (P + C) products of queries and keys, not
(P + N)^2: the blocks do not see each other. With a layout among the arguments of a forward pass
(`layout=`) `attend` follows it; without one it is transformers' "sdpa".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "lifelora"
"""Of `attend` in transformers' register of attention functions."""


class Layout(Protocol):
    """What the tokens of one row see."""

    def attend(self, layer: int, query_HND: Tensor, key_KND: Tensor, value_KND: Tensor) -> Tensor:
        """Return what each token reads, [H, N, D]; queries are scaled. H = K x group."""


def register() -> str:
    """Make `attend` known to transformers; return its name."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def attend(
    module: nn.Module, query_BHND: Tensor, key_BKND: Tensor, value_BKND: Tensor,
    attention_mask: Tensor | None, *, scaling: float, layout: Layout | None = None, **others: Any,
) -> tuple[Tensor, None]:
    """Return the attention's output [B, N, H, D], as transformers asks for it."""
    if layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query_BHND, key_BKND, value_BKND, attention_mask, scaling=scaling, **others
        )
        return found
    layer = int(module.layer_idx)       # type: ignore[arg-type]
    read_HND = layout.attend(layer, scaling * query_BHND[0], key_BKND[0], value_BKND[0])
    return read_HND.transpose(0, 1)[None], None


@dataclass(frozen=True, slots=True)
class PrefixStates:
    """Keys and values of one prefix under one mix, after their rotation, [K, P, D] of each layer.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]

    @property
    def num_tokens(self) -> int:
        """Return P."""
        return self.keys[0].shape[1]

    @property
    def num_bytes(self) -> int:
        """Return the memory that they take."""
        return sum(each.numel() * each.element_size() for each in (*self.keys, *self.values))


class PrefixLayout:
    """Prefixes one after another; keeps their keys and values."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self._ends = np.cumsum(lengths).tolist()
        self._keys: list[list[Tensor]] = [[] for _ in lengths]
        self._values: list[list[Tensor]] = [[] for _ in lengths]

    def attend(self, layer: int, query_HND: Tensor, key_KND: Tensor, value_KND: Tensor) -> Tensor:
        """See Layout; layers come in their order."""
        read, start = [], 0
        for number, end in enumerate(self._ends):
            key_KPD, value_KPD = key_KND[:, start:end].clone(), value_KND[:, start:end].clone()
            self._keys[number].append(key_KPD)
            self._values[number].append(value_KPD)
            group = len(query_HND) // len(key_KPD)
            read.append(F.scaled_dot_product_attention(
                query_HND[None, :, start:end], key_KPD.repeat_interleave(group, 0)[None],
                value_KPD.repeat_interleave(group, 0)[None], is_causal=True, scale=1.0,
            )[0])
            start = end
        return torch.cat(read, dim=1)

    def states(self) -> list[PrefixStates]:
        """Return what was kept of each prefix."""
        return [PrefixStates(*pair) for pair in zip(self._keys, self._values, strict=True)]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Places of one request's blocks in its part of the row, padded to the longest of them."""

    places_MC: Tensor
    """Place of each token of each block; 0 where there is none."""
    bias_MCC: Tensor
    """0 where a token sees another of its block, else minus infinity; padding sees its first."""
    slots_N: Tensor
    """Place of each token in the padded blocks, flattened."""

    @classmethod
    def of(cls, sizes: Sequence[int], like: Tensor) -> Self:
        """Lay out blocks of these sizes; numbers of the type of `like`, on its device."""
        width = max(sizes)
        starts = np.cumsum([0, *sizes[:-1]])
        within_MC = np.broadcast_to(np.arange(width), (len(sizes), width))
        is_token_MC = within_MC < np.array(sizes)[:, None]
        places_MC = np.where(is_token_MC, starts[:, None] + within_MC, 0)
        causal_CC = np.tril(np.ones((width, width), bool))
        seen_MCC = causal_CC & is_token_MC[:, None, :]
        bias_MCC = torch.from_numpy(np.where(seen_MCC, 0.0, -np.inf))
        return cls(
            torch.from_numpy(places_MC).to(like.device), bias_MCC.to(like),
            torch.from_numpy(np.flatnonzero(is_token_MC)).to(like.device),
        )


class BlockLayout:
    """Blocks of one or more requests, each behind the prefix of its request."""

    def __init__(
        self, prefixes: Sequence[PrefixStates], sizes: Sequence[Sequence[int]]
    ) -> None:
        """`sizes`: tokens of each block of each request."""
        self._prefixes = prefixes
        self._ends = np.cumsum([sum(each) for each in sizes]).tolist()
        self._blocks = [
            Blocks.of(each, prefix.keys[0]) for each, prefix in zip(sizes, prefixes, strict=True)
        ]

    def attend(self, layer: int, query_HND: Tensor, key_KND: Tensor, value_KND: Tensor) -> Tensor:
        """See Layout."""
        read, start = [], 0
        for prefix, blocks, end in zip(self._prefixes, self._blocks, self._ends, strict=True):
            read.append(attend_blocks(
                query_HND[:, start:end], key_KND[:, start:end], value_KND[:, start:end],
                prefix.keys[layer], prefix.values[layer], blocks,
            ))
            start = end
        return torch.cat(read, dim=1)


def attend_blocks(
    query_HND: Tensor, key_KND: Tensor, value_KND: Tensor, key_KPD: Tensor, value_KPD: Tensor,
    blocks: Blocks,
) -> Tensor:
    """Return what the tokens of some blocks read of a prefix and of their own block, [H, N, D].

    One softmax over both, so it is the attention of prefix + block. Heads of a group share keys:
    their queries are rows of one product.
    """
    heads, tokens, dims = query_HND.shape
    num_keys = len(key_KPD)
    group, (num_blocks, width) = heads // num_keys, blocks.places_MC.shape

    def in_blocks(each_ND: Tensor) -> Tensor:
        return each_ND[:, blocks.places_MC]                     # [.., M, C, D]

    query_KQD = query_HND.reshape(num_keys, group * tokens, dims)
    to_prefix_HNP = (query_KQD @ key_KPD.mT).view(heads, tokens, -1)
    query_KGMCD = in_blocks(query_HND).unflatten(0, (num_keys, group))
    to_own_KGMCC = query_KGMCD @ in_blocks(key_KND)[:, None].mT + blocks.bias_MCC
    to_own_HNC = to_own_KGMCC.reshape(heads, num_blocks * width, width)[:, blocks.slots_N]
    weights = torch.cat([to_prefix_HNP, to_own_HNC], dim=-1).softmax(-1)
    of_prefix_HNP, of_own_HNC = weights.split([key_KPD.shape[1], width], dim=-1)

    from_prefix_KQD = of_prefix_HNP.reshape(num_keys, group * tokens, -1) @ value_KPD
    padded_HSC = of_own_HNC.new_zeros(heads, num_blocks * width, width)
    padded_HSC[:, blocks.slots_N] = of_own_HNC
    of_own_KGMCC = padded_HSC.view(num_keys, group, num_blocks, width, width)
    from_own_KGMCD = of_own_KGMCC @ in_blocks(value_KND)[:, None]
    from_own_HND = from_own_KGMCD.reshape(heads, num_blocks * width, dims)[:, blocks.slots_N]
    read_HND: Tensor = from_prefix_KQD.view(heads, tokens, dims) + from_own_HND
    return read_HND
