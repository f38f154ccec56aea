"""A CRM folder and a catalogue -> scores, states and retrieval vectors; eval mode and float32.

    crm.safetensors    weights.*, item_ids.*, statistics
    crm.json           format, sizes, configuration, field codes
    users.parquet      user ids in row order
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from engine import storage
from engine.config import CRMConfig, SourceConfig
from engine.data.catalogue import Catalogue
from engine.errors import ArtifactError
from engine.models.crm import CRM, CRMShape, to_tensors
from engine.models.crm_features import CRMRows, FeatureSpace, build_rows, item_table, join
from engine.models.crm_maps import CRMMaps
from engine.types import UNKNOWN, CRMOutput, FloatArray, History, IntArray, Profile

FORMAT = 1
WEIGHTS, FACTS, USERS = "crm.safetensors", "crm.json", "users.parquet"
PREFIX = "weights."


class CRMScorer:
    """A frozen CRM over one catalogue. Safe to use from several threads."""

    def __init__(
        self, model: CRM, maps: CRMMaps, space: FeatureSpace, users: dict[str, int] | None = None
    ) -> None:
        """`users`: row by id, if they are known; they are those of `maps`."""
        self.model = model.eval().requires_grad_(False)
        self.maps, self.space = maps, space
        self._users = users or {user_id: row for row, user_id in enumerate(maps.user_ids, start=1)}
        self._table = to_tensors(space.items, "cpu")

    @classmethod
    def load(cls, folder_uri: str, catalogue: Catalogue, item_vectors: FloatArray) -> "CRMScorer":
        """Read a CRM; `item_vectors` are unit text vectors by item index of the catalogue.

        Raises ArtifactError for a missing, additional or misshapen weight, another format or
        other text vectors.
        """
        weights, maps, facts = read_crm(folder_uri)
        shape, config = CRMShape(**facts["shape"]), CRMConfig.model_validate(facts["crm"])
        if item_vectors.shape[1] != shape.text_dims:
            raise ArtifactError(
                f"item vectors have width {item_vectors.shape[1]}, the CRM wants {shape.text_dims}"
            )
        model = CRM(shape, config)
        load_weights(model, weights, folder_uri)
        source = SourceConfig.model_validate(facts["source"])
        return cls(model, maps, maps.space(catalogue, item_vectors, config, source))

    def score(
        self, histories: Sequence[History], profiles: Sequence[Profile],
        candidates: Sequence[IntArray],
    ) -> list[CRMOutput]:
        """Score each request's candidates in one batch; no feature depends on the request's time.
        """
        padded = [items if len(items) else np.array([UNKNOWN]) for items in candidates]
        parts = [
            self.rows(profile, history, items, np.full(len(items), len(history)))
            for history, profile, items in zip(histories, profiles, padded, strict=True)
        ]
        if not parts:
            return []
        rows = join(parts)
        logits, states, targets, attention = self.forward(rows, np.arange(len(rows)))
        ends = np.cumsum([len(part) for part in parts])
        outputs = []
        for place, (part, end) in enumerate(zip(parts, ends, strict=True)):
            kept = slice(end - len(part), end - len(part) + len(candidates[place]))
            outputs.append(CRMOutput(
                logits[kept], states[place], targets[kept], rows.behaviors_BS[kept],
                attention[kept],
            ))
        return outputs

    def rows(
        self, profile: Profile, history: History, candidates: IntArray, lengths: IntArray,
    ) -> CRMRows:
        """Return the features of one user's rows; `lengths` is the history that each may see."""
        codes = self.space.user_fields.encode_all([profile.fields])
        user = self._users.get(profile.user_id, UNKNOWN)
        return build_rows(self.space, user, codes, history, candidates, lengths)

    @torch.inference_mode()
    def forward(
        self, rows: CRMRows, picked: IntArray
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Return logits [B], user states [R, D], target states [B, H] and attention [B, S].

        The requests are those of the picked rows, each once and in order.
        """
        if self.model.training:
            raise ArtifactError("the CRM is in training mode: its states would be noisy")
        batch = rows.batch(picked, self.space.crm.max_recent)
        found = self.model(to_tensors(batch, "cpu"), self._table)
        attention = found.attention_BS.numpy()
        width = rows.behaviors_BS.shape[1] - attention.shape[1]
        return (
            found.logits_B.numpy(), found.user_states_RD.numpy(), found.target_states_BH.numpy(),
            np.pad(attention, ((0, 0), (0, width))),
        )

    @torch.inference_mode()
    def retrieval_states(
        self, histories: Sequence[History], profiles: Sequence[Profile]
    ) -> FloatArray:
        """Return float32 [B, D]; the score of item i is `state @ item_vectors()[i]`."""
        parts = [
            self.rows(profile, history, np.array([UNKNOWN]), np.array([len(history)]))
            for history, profile in zip(histories, profiles, strict=True)
        ]
        if not parts:
            return np.zeros((0, self.space.crm.state_dim), np.float32)
        rows = join(parts)
        batch = to_tensors(rows.batch(np.arange(len(rows)), self.space.crm.max_recent), "cpu")
        states = self.model.retrieval_states(self.model.user_states(batch, self._table))
        return np.asarray(states.numpy())

    @torch.inference_mode()
    def item_vectors(self, items: IntArray | None = None) -> FloatArray:
        """Return the retrieval vectors [items + 1, D] of the catalogue, or of these items alone,
        float32.
        """
        asked = np.arange(len(self.space.items.rows_I)) if items is None else items
        found = self.model.retrieval_vectors(torch.from_numpy(asked), self._table)
        return np.asarray(found.numpy())

    def with_items(
        self, catalogue: Catalogue, item_vectors: FloatArray, changed: IntArray
    ) -> "CRMScorer":
        """Return the same CRM over a catalogue in which some items are new (at the end) or differ.

        `changed` are those items, ascending. To the CRM a new item has no id of its own: it is
        known by its text and fields.
        """
        space, size = self.space, len(catalogue)
        added = size - len(space.items.rows_I)
        rows_I = np.pad(space.items.rows_I, (0, added))
        counts_I3 = np.pad(space.statistics.counts_I3, ((0, added), (0, 0)))
        statistics = replace(space.statistics, counts_I3=counts_I3)
        kept = np.concatenate([[UNKNOWN], changed])
        part = item_table(
            catalogue.take(changed.tolist()), item_vectors[kept], self.maps.item_fields,
            replace(statistics, counts_I3=counts_I3[kept]), rows_I[kept],
        )
        items = space.items.put(kept, part, size)
        return CRMScorer(
            self.model, self.maps, replace(space, items=items, statistics=statistics), self._users
        )


def read_crm(folder_uri: str) -> tuple[storage.Tensors, CRMMaps, dict[str, Any]]:
    """Return weights by name, maps and facts of a CRM folder; ArtifactError for another format."""
    facts = storage.read_json(storage.join(folder_uri, FACTS))
    if facts["format"] != FORMAT:
        raise ArtifactError(f"CRM format {facts['format']} in {folder_uri}; known: {FORMAT}")
    tensors = storage.read_tensors(storage.join(folder_uri, WEIGHTS))
    maps = CRMMaps.read(tensors, facts, storage.read_table(storage.join(folder_uri, USERS)))
    weights = {
        name.removeprefix(PREFIX): array
        for name, array in tensors.items() if name.startswith(PREFIX)
    }
    return weights, maps, facts


def load_weights(model: CRM, weights: storage.Tensors, source: str) -> None:
    """Copy weights into a model; ArtifactError unless every one is there and fits."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != found:
        wrong = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        raise ArtifactError(f"CRM in {source}: weights missing, unknown or misshapen: {wrong}")
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
    model.load_state_dict(tensors, strict=True)


def write_crm(
    folder_uri: str, weights: storage.Tensors, maps: CRMMaps, facts: dict[str, Any]
) -> None:
    """Write a CRM folder; `facts` holds shape, crm and source as JSON values."""
    named = {f"{PREFIX}{name}": array for name, array in weights.items()}
    storage.write_tensors(storage.join(folder_uri, WEIGHTS), {**named, **maps.to_tensors()})
    storage.write_table(storage.join(folder_uri, USERS), maps.users_table())
    storage.write_json(
        storage.join(folder_uri, FACTS), {"format": FORMAT, **facts, **maps.to_json()}
    )
