"""Mean state of a candidate's tokens -> what is added to its answer's log-odds.

At the answer position nearly all of the state is common to the candidates of a slate; their own
tokens tell them apart (docs/results.md has the figures). Ours, not the paper's.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.types import FloatArray

VARIANCE_FLOOR = 1e-4
"""Added to the variance of each dimension, so that a constant one is not blown up."""


class Readout(nn.Module):
    """A linear function of the mean state of each candidate's block; 0 before training.

    It learns on standardised states: a few dimensions of a language model's states are many
    deviations away from zero in every text, and hide the others from an optimiser that sees each
    label once.
    """

    mean_D: Tensor
    scale_D: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(1))
        self.register_buffer("mean_D", torch.zeros(width), persistent=False)
        self.register_buffer("scale_D", torch.ones(width), persistent=False)

    def forward(self, hidden_BTD: Tensor, segments_BT: Tensor, num_slots: int) -> Tensor:
        """Return one value for each of `num_slots` candidates, [B, M], float32.

        A slot without a block has state 0.
        """
        states_BMD = self.states(hidden_BTD, segments_BT, num_slots)
        logits_BM = (states_BMD - self.mean_D) / self.scale_D @ self.weight + self.bias
        return logits_BM.float()

    def states(self, hidden_BTD: Tensor, segments_BT: Tensor, num_slots: int) -> Tensor:
        """Return what it reads, [B, M, D]: the mean state of each block, at root mean square 1."""
        mean_BMD = block_means(hidden_BTD.to(self.weight.dtype), segments_BT, num_slots)
        return F.rms_norm(mean_BMD, self.weight.shape)

    @torch.no_grad()
    def standardise(self, states_ND: Tensor) -> None:
        """Measure states in deviations from the mean of these; for a readout that is still 0."""
        self.mean_D.copy_(states_ND.mean(0))
        self.scale_D.copy_((states_ND.var(0, correction=0) + VARIANCE_FLOOR).sqrt())

    def plain(self, weight_D: FloatArray, bias_1: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return weight and bias that do to states as they are what these do to standardised ones.
        """
        plain_D = weight_D / self.scale_D.cpu().numpy()
        return plain_D, bias_1 - plain_D @ self.mean_D.cpu().numpy()


    def load_standard(self, tensors: Mapping[str, FloatArray]) -> None:
        """Take the standardisation that these buffers hold."""
        self.mean_D.copy_(torch.from_numpy(tensors["mean_D"]))
        self.scale_D.copy_(torch.from_numpy(tensors["scale_D"]))

    @torch.no_grad()
    def take_over(self, weight_D: FloatArray, bias_1: FloatArray) -> None:
        """Go on from what `plain` returned, under the standardisation of now."""
        mean_D, scale_D = (each.cpu().numpy().astype(np.float64)
                           for each in (self.mean_D, self.scale_D))
        standard_D, shifted_1 = weight_D * scale_D, bias_1 + weight_D @ mean_D
        self.weight.copy_(torch.from_numpy(standard_D))     # last: both may be views of these
        self.bias.copy_(torch.from_numpy(shifted_1))


def block_means(hidden_BTD: Tensor, segments_BT: Tensor, num_slots: int) -> Tensor:
    """Return the mean state of each candidate's tokens, [B, M, D]; zeros where there is none.

    Segment m + 1 is the block of candidate m.
    """
    slots_M = torch.arange(1, num_slots + 1, device=segments_BT.device)
    is_of_BMT = (segments_BT[:, None, :] == slots_M[:, None]).to(hidden_BTD.dtype)
    return is_of_BMT @ hidden_BTD / is_of_BMT.sum(-1, keepdim=True).clamp_min(1)
