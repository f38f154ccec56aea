"""The weights that a night starts from -> a term of the loss that holds what it trains near them.

    anchor = weight * sum over parts of |w - w0|^2 / |w0|^2

Parts are the bank's A and B, the gates and the readout. Each is measured in its own size, so one
weight means the same for banks of any number, rank and base model. B is a part of its own because
it starts at zero and stays smaller than A: in one sum its movement, half of what an adapter does,
would be lost.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from engine.types import FloatArray

FLOOR = 1e-6
"""Least mean square that a part is measured in: one that is still zero has no size of its own."""


def names_by_part(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of bank.safetensors by part."""
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(_part_of(name), []).append(name)
    return parts


def _part_of(name: str) -> str:
    first, last = name.split(".")[0], name.split(".")[-1]
    if first == "bank":
        return "bank_a" if last == "a_NRI" else "bank_b"
    return "readout" if first == "readout" else "gates"


def square_of(tensors: Sequence[FloatArray]) -> float:
    """Return the sum of squares of a part, which its squared distances are divided by."""
    size = sum(tensor.size for tensor in tensors)
    return max(sum(float((tensor**2).sum()) for tensor in tensors), FLOOR * size)


class Anchor:
    """Where parameters were when it was made, and how much it costs them to leave."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], weight: float) -> None:
        """`parameters`: by name in bank.safetensors; whole ones, so not those of ZeRO stage 3."""
        self._pairs: list[tuple[nn.Parameter, Tensor, float]] = []
        for names in names_by_part(parameters).values():
            starts = [parameters[name].detach().clone() for name in names]
            scale = weight / square_of([start.cpu().numpy() for start in starts])
            self._pairs += [
                (parameters[name], start, scale) for name, start in zip(names, starts, strict=True)
            ]

    def loss(self) -> Tensor:
        """Return the term, to be added to what each process passes to `engine.backward`.

        It is the same on every process and in every micro-batch, and DeepSpeed takes the mean over
        both: so it counts once for each optimiser step.
        """
        return torch.stack([
            scale * ((parameter - start) ** 2).sum() for parameter, start, scale in self._pairs
        ]).sum()
