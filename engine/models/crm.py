"""The sequential conventional recommendation model (CRM).

    user state      newest events -> pooled -> MLP with profile and statistics   [R, D]
    target state    candidate x relevant events (attention) + user state -> MLP  [B, H]
    logit           of the target state                                          [B]
    retrieval       user state . item vector                                     [R, D] x [U, D]

Target attention scores an event by an MLP on [t, h, t - h, t * h], as in DIN (arXiv 1706.06978),
plus a scaled dot product; softmax over the events and a learned "nothing relevant" token, which
also stands for an empty history. The first layer is linear in t - h, so it is computed as
W_t t + W_h h + W_x (t * h), without the wide concatenation. For the same reason an event's token,
relu(W [item ; level ; residuals]), is a sum of projected rows: items and levels are projected once
each and then gathered.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.config import CRMConfig
from engine.models.crm_features import RESIDUALS, ROW_DENSE, USER_DENSE, CRMBatch, ItemTable

QUERIES = 4
"""Learned queries that pool the newest events into the user state."""


@dataclass(frozen=True, slots=True)
class CRMShape:
    """Sizes that come from the data."""

    num_users: int
    num_items: int
    num_user_codes: int
    num_item_codes: int
    num_levels: int
    text_dims: int


class CRMTensors(NamedTuple):
    """What one forward pass returns; a tuple, because ZeRO stage 3 hooks no other structure."""

    logits_B: Tensor
    target_states_BH: Tensor
    user_states_RD: Tensor
    attention_BS: Tensor
    own_scores_B: Tensor | None = None
    """Retrieval score of each row's item, and of the drawn items, for the row's user."""
    drawn_scores_BN: Tensor | None = None


def to_tensors(batch: CRMBatch | ItemTable, device: torch.device | str) -> dict[str, Tensor]:
    """Return every array as a tensor: integers as int64, the rest as float32."""
    tensors = {}
    for field in fields(batch):
        tensor = torch.as_tensor(getattr(batch, field.name))
        dtype = torch.float32 if tensor.is_floating_point() else torch.int64
        tensors[field.name] = tensor.to(device=device, dtype=dtype)
    return tensors


class CRM(nn.Module):
    """All weights; items come in through an item table, so that a catalogue may grow."""

    def __init__(self, shape: CRMShape, config: CRMConfig) -> None:
        super().__init__()
        width, state = config.embedding_dim, config.state_dim
        self.id_dropout = config.id_dropout
        self.user_ids = nn.Embedding(shape.num_users, width)
        self.user_codes = nn.Embedding(shape.num_user_codes, width)
        self.item_ids = nn.Embedding(shape.num_items, width)
        self.item_codes = nn.Embedding(shape.num_item_codes, width)
        self.levels = nn.Embedding(shape.num_levels, width)
        for table in (self.user_ids, self.user_codes, self.item_ids, self.item_codes, self.levels):
            nn.init.normal_(table.weight, std=0.05)
        self.text = nn.Linear(shape.text_dims, width, bias=False)
        self.event_item = nn.Linear(width, width)
        self.event_residuals = nn.Linear(RESIDUALS, width, bias=False)
        self.attention_target = nn.Linear(width, width)
        self.attention_event = nn.Linear(width, width, bias=False)
        self.attention_product = nn.Linear(width, width, bias=False)
        self.attention_cosine = nn.Linear(1, width, bias=False)
        self.attention_score = nn.Linear(width, 1)
        self.nothing = nn.Parameter(torch.zeros(width))
        self.nothing_score = nn.Parameter(torch.zeros(1))
        self.queries = nn.Parameter(torch.randn(QUERIES, width) * 0.1)
        self.no_history = nn.Parameter(torch.zeros(QUERIES * width))
        self.user_tower = nn.Sequential(
            nn.Linear((QUERIES + 2) * width + USER_DENSE, 2 * state), nn.ReLU(),
            nn.Dropout(config.dropout), nn.Linear(2 * state, state),
        )
        self.head = _mlp(
            4 * width + state + USER_DENSE + ROW_DENSE, config.hidden_dims, config.dropout
        )
        self.output = nn.Linear(config.hidden_dims[-1], 1)
        self.linear = nn.Linear(USER_DENSE + ROW_DENSE, 1)
        self.state_item = nn.Linear(state, width)
        self.retrieval_user = nn.Linear(state, state)
        self.retrieval_item = nn.Linear(width + 3, state)

    def forward(
        self, batch: dict[str, Tensor], table: dict[str, Tensor], drawn_N: Tensor | None = None
    ) -> CRMTensors:
        """Score the rows of a batch (`to_tensors` of a CRMBatch and of an ItemTable).

        With drawn items, also return the retrieval scores that the sampled softmax needs.
        """
        places, items_UE = self._embed_items(batch, table)
        users_RE, profiles_RE = self._embed_users(batch)
        projected_UE = self.event_item(items_UE)
        recent_RLE = self._embed_events(
            projected_UE, places["recent_items_RL"], batch["recent_levels_RL"],
            batch["recent_residuals_RL2"],
        )
        states_RD = self._user_states(
            recent_RLE, batch["recent_levels_RL"] > 0, users_RE, profiles_RE, batch["dense_RF"]
        )
        events_BSE = self._embed_events(
            projected_UE, places["behavior_items_BS"], batch["behavior_levels_BS"],
            batch["behavior_residuals_BS2"],
        )
        targets_BE = functional.embedding(places["items_B"], items_UE)
        read_BE, attention_BS = self._attend(
            targets_BE, events_BSE, batch["cosines_BS"], batch["behavior_levels_BS"] > 0
        )
        requests = batch["requests_B"]
        states_BD = states_RD[requests]
        dense = torch.cat([batch["dense_RF"][requests], batch["dense_BF"]], dim=1)
        hidden_BH = self.head(torch.cat([
            targets_BE, read_BE, targets_BE * self.state_item(states_BD), profiles_RE[requests],
            states_BD, dense,
        ], dim=1))
        logits_B = (self.output(hidden_BH) + self.linear(dense)).squeeze(1)
        if drawn_N is None:
            return CRMTensors(logits_B, hidden_BH, states_RD, attention_BS)
        queries_BD = self.retrieval_states(states_RD)[requests]
        own_B = (queries_BD * self._vectors(targets_BE, batch["items_B"], table)).sum(1)
        drawn_BN = queries_BD @ self.retrieval_vectors(drawn_N, table).T
        return CRMTensors(logits_B, hidden_BH, states_RD, attention_BS, own_B, drawn_BN)

    def user_states(self, batch: dict[str, Tensor], table: dict[str, Tensor]) -> Tensor:
        """Return the user states [R, D] alone."""
        items_U, places = torch.unique(batch["recent_items_RL"], return_inverse=True)
        items_UE = self._embed_table(table, items_U)
        users_RE, profiles_RE = self._embed_users(batch)
        recent_RLE = self._embed_events(
            self.event_item(items_UE), places, batch["recent_levels_RL"],
            batch["recent_residuals_RL2"],
        )
        return self._user_states(
            recent_RLE, batch["recent_levels_RL"] > 0, users_RE, profiles_RE, batch["dense_RF"]
        )

    def retrieval_states(self, user_states_RD: Tensor) -> Tensor:
        """Return what is multiplied with item vectors [R, D]."""
        projected: Tensor = self.retrieval_user(user_states_RD)
        return projected

    def retrieval_vectors(self, items_U: Tensor, table: dict[str, Tensor]) -> Tensor:
        """Return the retrieval vectors [U, D] of some items."""
        return self._vectors(self._embed_table(table, items_U), items_U, table)

    def _vectors(self, items_UE: Tensor, items_U: Tensor, table: dict[str, Tensor]) -> Tensor:
        vectors: Tensor = self.retrieval_item(torch.cat([items_UE, table["dense_I3"][items_U]], 1))
        return vectors

    def _embed_items(
        self, batch: dict[str, Tensor], table: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Embed each item of a batch once; return the places of all indices, and the rows."""
        names = ("items_B", "behavior_items_BS", "recent_items_RL")
        flat = torch.cat([batch[name].reshape(-1) for name in names])
        items_U, places = torch.unique(flat, return_inverse=True)
        parts = torch.split(places, [batch[name].numel() for name in names])
        placed = {
            name: part.view(batch[name].shape) for name, part in zip(names, parts, strict=True)
        }
        return placed, self._embed_table(table, items_U)

    def _embed_table(self, table: dict[str, Tensor], items_U: Tensor) -> Tensor:
        """Return id + text + fields of items [U, E]."""
        ids = self._drop_ids(table["rows_I"][items_U])
        fields_UKE = self.item_codes(table["codes_IK"][items_U])
        mixed_UE = (fields_UKE * table["weights_IK"][items_U].unsqueeze(-1)).sum(1)
        rows: Tensor = self.item_ids(ids) + self.text(table["text_IT"][items_U]) + mixed_UE
        return rows

    def _embed_users(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return id [R, E] and profile [R, E] embeddings."""
        fields_RKE = self.user_codes(batch["codes_RK"])
        profiles_RE = (fields_RKE * batch["weights_RK"].unsqueeze(-1)).sum(1)
        return self.user_ids(self._drop_ids(batch["users_R"])), profiles_RE

    def _drop_ids(self, ids: Tensor) -> Tensor:
        """Replace a share of ids by the unknown id in training."""
        if not self.training or self.id_dropout == 0:
            return ids
        return ids * (torch.rand(ids.shape, device=ids.device) >= self.id_dropout)

    def _embed_events(
        self, projected_UE: Tensor, places: Tensor, levels: Tensor, residuals: Tensor
    ) -> Tensor:
        """Return event tokens [..., E]; `places` point into the projected items."""
        items = functional.embedding(places, projected_UE)
        tokens: Tensor = items + self.levels(levels) + self.event_residuals(residuals)
        return torch.relu(tokens)

    def _user_states(
        self, events_RLE: Tensor, seen_RL: Tensor, users_RE: Tensor, profiles_RE: Tensor,
        dense_RF: Tensor,
    ) -> Tensor:
        scores_RQL = torch.einsum("qe,rle->rql", self.queries, events_RLE)
        scores_RQL = scores_RQL.masked_fill(~seen_RL[:, None], torch.finfo(torch.float32).min)
        pooled_RQE = torch.softmax(scores_RQL, dim=-1) @ events_RLE
        some_R1 = seen_RL.any(dim=1, keepdim=True)
        pooled = torch.where(some_R1, pooled_RQE.flatten(1), self.no_history)
        states: Tensor = self.user_tower(torch.cat([pooled, users_RE, profiles_RE, dense_RF], 1))
        return states

    def _attend(
        self, targets_BE: Tensor, events_BSE: Tensor, cosines_BS: Tensor, seen_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted events [B, E] and the weights [B, S]."""
        products_BSE = targets_BE[:, None] * events_BSE
        hidden_BSE = torch.relu(
            self.attention_target(targets_BE)[:, None] + self.attention_event(events_BSE)
            + self.attention_product(products_BSE) + self.attention_cosine(cosines_BS[..., None])
        )
        dots_BS = products_BSE.sum(-1) * events_BSE.shape[-1] ** -0.5
        scores_BS = (self.attention_score(hidden_BSE).squeeze(-1) + dots_BS).masked_fill(
            ~seen_BS, -torch.inf
        )
        nothing_B1 = self.nothing_score.expand(len(scores_BS), 1)
        weights = torch.softmax(torch.cat([scores_BS, nothing_B1], dim=1), dim=1)
        read_BE = torch.einsum("bs,bse->be", weights[:, :-1], events_BSE)
        read_BE = read_BE + weights[:, -1:] * self.nothing
        return read_BE, weights[:, :-1]


def _mlp(width: int, hidden_dims: tuple[int, ...], dropout: float) -> nn.Sequential:
    """Return Linear, ReLU and dropout for each hidden width; no dropout after the last."""
    layers: list[nn.Module] = []
    for place, hidden in enumerate(hidden_dims):
        layers += [nn.Linear(width, hidden), nn.ReLU()]
        if place + 1 < len(hidden_dims):
            layers.append(nn.Dropout(dropout))
        width = hidden
    return nn.Sequential(*layers)
