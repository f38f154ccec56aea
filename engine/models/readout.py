"""Mean state of a candidate's tokens -> what is added to its answer's log-odds.

At the answer position nearly all of the state is common to the candidates of a slate; their own
tokens tell them apart (docs/results.md has the figures). Ours, not the paper's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Readout(nn.Module):
    """A linear function of the mean state of each candidate's block; 0 before training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden_BTD: Tensor, segments_BT: Tensor, num_slots: int) -> Tensor:
        """Return one value for each of `num_slots` candidates, [B, M], float32.

        A slot without a block gets the bias.
        """
        mean_BMD = block_means(hidden_BTD.to(self.weight.dtype), segments_BT, num_slots)
        logits_BM = F.rms_norm(mean_BMD, self.weight.shape) @ self.weight + self.bias
        return logits_BM.float()


def block_means(hidden_BTD: Tensor, segments_BT: Tensor, num_slots: int) -> Tensor:
    """Return the mean state of each candidate's tokens, [B, M, D]; zeros where there is none.

    Segment m + 1 is the block of candidate m.
    """
    slots_M = torch.arange(1, num_slots + 1, device=segments_BT.device)
    is_of_BMT = (segments_BT[:, None, :] == slots_M[:, None]).to(hidden_BTD.dtype)
    return is_of_BMT @ hidden_BTD / is_of_BMT.sum(-1, keepdim=True).clamp_min(1)
