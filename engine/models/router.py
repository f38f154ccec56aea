"""CRM output -> mixing weights: one small MLP for each layer and target matrix, then softmax.

    a = softmax((W2 Dropout(ReLU(W1 LayerNorm(h) + b1)) + b2) / T)      arXiv 2408.03533, its code

All gates are evaluated at once, as batched matrices, in float32.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.config import BankConfig


class Router(nn.Module):
    """State [B, D] -> weights [B, G, N]; every row of weights is positive and sums to 1."""

    def __init__(self, state_dim: int, num_gates: int, config: BankConfig) -> None:
        super().__init__()
        hidden, experts = config.gate_hidden, config.num_adapters
        self.temperature = config.temperature
        self.norm = nn.LayerNorm(state_dim)
        self.dropout = nn.Dropout(config.gate_dropout)
        self.w1_GHD = nn.Parameter(torch.empty(num_gates, hidden, state_dim))
        self.b1_GH = nn.Parameter(torch.zeros(num_gates, hidden))
        self.w2_GNH = nn.Parameter(torch.empty(num_gates, experts, hidden))
        self.b2_GN = nn.Parameter(torch.zeros(num_gates, experts))
        for weight, fan_in in ((self.w1_GHD, state_dim), (self.w2_GNH, hidden)):
            nn.init.uniform_(weight, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))

    def forward(self, state_BD: Tensor) -> Tensor:
        """Return the mixing weights of each gate."""
        normal_BD = self.norm(state_BD.to(self.w1_GHD.dtype))
        hidden_BGH = torch.einsum("bd,ghd->bgh", normal_BD, self.w1_GHD) + self.b1_GH
        hidden_BGH = self.dropout(F.relu(hidden_BGH))
        logits_BGN = torch.einsum("bgh,gnh->bgn", hidden_BGH, self.w2_GNH) + self.b2_GN
        return torch.softmax(logits_BGN / self.temperature, dim=-1)
