"""What item texts could add to the CRM: a small model of both, fitted on the bank's whole window.

It reads the vectors that the frozen language model makes of the items (their first principal
components, `item_text.dims`), and the user's liked items through them; it learns from every row of
[T0, T1), not from a sample, and needs no training of the language model. Linear models and boosted
trees are tried, and validation chooses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.quality.ground import Ground
from engine.metrics import ctr
from engine.retrieval.item_text import liked_centre
from engine.types import FloatArray, IntArray, Window

WINDOWS = (Window.BANK, Window.VALIDATION, Window.TEST)
"""Where a model learns, where it is chosen, what it answers."""


@dataclass(frozen=True, slots=True)
class TextRows:
    """The rows of one window, by partition, user and slate."""

    slate_ids: Sequence[str]
    features_NF: FloatArray
    """The item's vector v [D], v * c and v . c for the centre c of the items liked before."""
    labels_N: IntArray

    def beside(self, logits: Mapping[str, Sequence[float]]) -> FloatArray:
        """Return the features after the CRM's logits, which are given by slate [N, 1 + F]."""
        crm_N = np.concatenate([logits[slate_id] for slate_id in self.slate_ids])
        return np.column_stack([crm_N, self.features_NF])


def read_text_rows(ground: Ground) -> dict[Window, TextRows]:
    """Return the rows of each of WINDOWS; history is what stands before the row's slate."""
    inputs = ground.inputs()
    vectors_ID = inputs.vectors()
    slate_ids: dict[Window, list[str]] = {window: [] for window in WINDOWS}
    features: dict[Window, list[FloatArray]] = {window: [] for window in WINDOWS}
    labels: dict[Window, list[Sequence[int]]] = {window: [] for window in WINDOWS}
    for partition in inputs.partitions():
        histories = inputs.histories_at(partition)
        for window in WINDOWS:
            for user_id, user in inputs.slates_at(partition, (window,)).items():
                slate_ids[window] += user.slate_ids
                labels[window] += user.labels
                for items, length in zip(user.items, user.history_lengths, strict=True):
                    centre_D = liked_centre(histories[user_id].head(length), vectors_ID)
                    products_MD = vectors_ID[items] * centre_D
                    features[window].append(np.column_stack([
                        vectors_ID[items], products_MD, products_MD.sum(1),
                    ]))
    return {
        window: TextRows(
            slate_ids[window], np.concatenate(features[window]), np.concatenate(labels[window])
        ) for window in WINDOWS
    }


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted model and what chose it."""

    name: str
    model: Any
    validation_auc: float


def fit(
    learned_NF: FloatArray, labels_N: IntArray, chosen_MF: FloatArray, chosen_labels_M: IntArray
) -> Fitted:
    """Return the model of `candidates` that orders the rows `chosen` best."""
    found = []
    for name, model in candidates().items():
        logits_M = model.fit(learned_NF, labels_N).decision_function(chosen_MF)
        found.append(Fitted(name, model, ctr.auc(chosen_labels_M, logits_M)))
    return max(found, key=lambda each: each.validation_auc)


def candidates() -> dict[str, Any]:
    """Return linear models of several L2 penalties, and boosted trees."""
    linear = {
        f"linear, C = {inverse:g}": make_pipeline(
            StandardScaler(), LogisticRegression(C=inverse, max_iter=1000)
        ) for inverse in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    }
    trees = HistGradientBoostingClassifier(
        learning_rate=0.05, max_iter=100, l2_regularization=10.0, random_state=0
    )
    return {**linear, "boosted trees": trees}
