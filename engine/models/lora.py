"""The bank of meta-LoRA adapters inside a frozen transformer, mixed per row in rank space.

    sum_of_products   y = W x + s * sum_k a_k B_k A_k x
    product_of_sums   y = W x + s * (sum_k a_k B_k) (sum_k a_k A_k) x      s = alpha / rank

The first is a mixture of adapters of rank up to N r; the second has cross terms and rank r, and is
the default of the method's released code (arXiv 2408.03533). Neither makes per-user weights: the
bank is two dense matrices, and the gates scale the N r hidden columns in between.

Gates are an argument of every forward pass. `GatedAttention` binds them to a throw-away view of
the attention block, so nothing is left on a shared module and requests may run side by side.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.config import BankConfig
from engine.errors import ConfigError
from engine.types import MixingMode


@dataclass(frozen=True, slots=True)
class Gates:
    """Mixing weights of a batch: one row of weights for each segment of each sequence."""

    weights_BPGN: Tensor
    segments_BT: Tensor | None = None
    """Segment of each token; None if every sequence is one segment (P = 1)."""

    def of(self, gate: int) -> Tensor:
        """Return the weights of one gate: [B, 1 or T, N]."""
        weights_BPN = self.weights_BPGN[:, :, gate]
        if self.segments_BT is None:
            return weights_BPN
        index_BTN = self.segments_BT[:, :, None].expand(-1, -1, weights_BPN.shape[-1])
        return weights_BPN.gather(1, index_BTN)


class MetaLoRABank(nn.Module):
    """N adapters of rank R for one linear layer, kept as two dense matrices (float32)."""

    def __init__(self, in_features: int, out_features: int, config: BankConfig) -> None:
        super().__init__()
        self.mixing = config.mixing
        self.scale = config.alpha / config.rank
        self.dropout = nn.Dropout(config.dropout)
        shape = (config.num_adapters, config.rank)
        self.a_NRI = nn.Parameter(torch.empty(*shape, in_features))
        self.b_NRO = nn.Parameter(torch.zeros(*shape, out_features))
        bound = 1 / math.sqrt(in_features)      # kaiming_uniform(a = sqrt 5)
        nn.init.uniform_(self.a_NRI, -bound, bound)

    def forward(self, x_BTI: Tensor, weights_BTN: Tensor) -> Tensor:
        """Return the mixed update of W x, [B, T, O], in the type of x."""
        a_CI = self.a_NRI.flatten(0, 1).to(x_BTI.dtype)
        b_CO = self.b_NRO.flatten(0, 1).to(x_BTI.dtype)
        weights_BTN1 = weights_BTN.to(x_BTI.dtype)[..., None]
        scaled_BTN1 = (self.scale * weights_BTN).to(x_BTI.dtype)[..., None]
        low_BTNR = F.linear(self.dropout(x_BTI), a_CI).unflatten(-1, self.a_NRI.shape[:2])
        if self.mixing is MixingMode.PRODUCT_OF_SUMS:
            low_BTNR = (low_BTNR * weights_BTN1).sum(-2, keepdim=True)
        update_BTO: Tensor = (low_BTNR * scaled_BTN1).flatten(-2) @ b_CO
        return update_BTO

    def materialise(self, weights_N: Tensor) -> Tensor:
        """Return the dense update of W, [O, I], for one row of weights: the slow reference."""
        if self.mixing is MixingMode.PRODUCT_OF_SUMS:
            a_RI = torch.einsum("n,nri->ri", weights_N, self.a_NRI)
            b_RO: Tensor = torch.einsum("n,nro->ro", weights_N, self.b_NRO)
            return b_RO.T @ a_RI * self.scale
        products_OI: Tensor = torch.einsum("n,nro,nri->oi", weights_N, self.b_NRO, self.a_NRI)
        return self.scale * products_OI

    def mixed_adapter(self, weights_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return one plain LoRA (A [r', I], B [O, r']) equal to the mix at scale alpha / rank.

        r' is R for `product_of_sums` and N R for `sum_of_products`.
        """
        if self.mixing is MixingMode.PRODUCT_OF_SUMS:
            a_RI = torch.einsum("n,nri->ri", weights_N, self.a_NRI)
            return a_RI, torch.einsum("n,nro->or", weights_N, self.b_NRO)
        return self.a_NRI.flatten(0, 1), (weights_N[:, None, None] * self.b_NRO).flatten(0, 1).T


def mixed_linear(
    linear: nn.Module, bank: MetaLoRABank, weights_BTN: Tensor, x_BTI: Tensor
) -> Tensor:
    """Return W x plus the mixed update."""
    base_BTO: Tensor = linear(x_BTI)
    update_BTO: Tensor = bank(x_BTI, weights_BTN)
    return base_BTO + update_BTO


class GatedAttention(nn.Module):
    """An attention block whose target matrices are changed by the bank, if gates are given."""

    def __init__(self, attention: nn.Module, config: BankConfig, first_gate: int) -> None:
        super().__init__()
        self.attention = attention
        self.first_gate = first_gate
        linears = {name: getattr(attention, name) for name in config.targets}
        self.banks = nn.ModuleDict({
            name: MetaLoRABank(linear.in_features, linear.out_features, config)
            for name, linear in linears.items()
        })

    @property
    def device(self) -> torch.device:
        """Where the block's inputs must be."""
        return next(self.parameters()).device

    def targets(self) -> Iterator[tuple[int, str, MetaLoRABank]]:
        """Yield gate number, matrix name and bank of each target matrix."""
        for offset, (name, bank) in enumerate(self.banks.items()):
            assert isinstance(bank, MetaLoRABank)
            yield self.first_gate + offset, name, bank

    def forward(self, *args: Any, gates: Gates | None = None, **kwargs: Any) -> Any:
        """Call the block; without gates it is the frozen one."""
        block = self.attention if gates is None else self._bound(gates)
        return block(*args, **kwargs)

    def _bound(self, gates: Gates) -> nn.Module:
        """Return a view of the block whose target matrices carry these gates."""
        view = copy.copy(self.attention)
        for gate, name, bank in self.targets():
            linear = getattr(self.attention, name)
            view.__dict__[name] = partial(mixed_linear, linear, bank, gates.of(gate))
        return view


def install_bank(model: nn.Module, config: BankConfig) -> list[GatedAttention]:
    """Wrap every attention block of a transformers model that has the target matrices.

    Gate numbers count blocks first, then targets in the order of the config.
    Raises ConfigError if no block has them all.
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if all(isinstance(getattr(child, target, None), nn.Linear) for target in config.targets)
        and "attn" in name
    ]
    if not found:
        raise ConfigError(
            f"bank.targets {config.targets}: no attention block of {type(model).__name__} has them "
            "all as linear layers"
        )
    wrapped = []
    for number, (parent, name, child) in enumerate(found):
        gated = GatedAttention(child, config, first_gate=number * len(config.targets))
        setattr(parent, name, gated)
        wrapped.append(gated)
    return wrapped
