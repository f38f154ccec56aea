"""What item texts could add to the CRM: a linear model of both, fitted on the bank's whole window.

It reads the vectors that the frozen language model makes of the items, and the user's liked items
through them; it learns from every row of [T0, T1), not from a sample, and needs no training of the
language model. Where it adds nothing to the CRM, a fused language model will hardly do so.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.quality.ground import Ground, States
from engine import storage
from engine.data.schema import part_name
from engine.metrics import ctr
from engine.retrieval.item_text import liked_centre
from engine.types import FloatArray, IntArray, Window

PENALTIES = (1e-3, 1e-2, 1e-1)
"""Inverse strengths of the L2 penalty that are tried; validation chooses."""


@dataclass(frozen=True, slots=True)
class TextRows:
    """The rows of one window, by partition, user and slate."""

    features_NF: FloatArray
    """The CRM's logit, the item's vector v [D], v * c and v . c for the centre c of liked items."""
    labels_N: IntArray

    @classmethod
    def read(cls, ground: Ground, states: States, window: Window) -> "TextRows":
        """Return a window's rows; history is what stands before the row's slate."""
        inputs = ground.crm_inputs()
        vectors_ID = inputs.vectors()
        features, labels = [], []
        for partition in inputs.partitions():
            histories = inputs.histories_at(partition)
            logits = read_row_logits(states, partition)
            for user_id, user in inputs.slates_at(partition, (window,)).items():
                for slate_id, items, length in zip(
                    user.slate_ids, user.items, user.history_lengths, strict=True
                ):
                    centre_D = liked_centre(histories[user_id].head(length), vectors_ID)
                    products_MD = vectors_ID[items] * centre_D
                    features.append(np.column_stack([
                        logits[slate_id], vectors_ID[items], products_MD, products_MD.sum(1),
                    ]))
                labels += user.labels
        return cls(np.concatenate(features), np.concatenate(labels))


def read_row_logits(states: States, partition: int) -> dict[str, list[float]]:
    """Return the CRM's logits of each slate, every row with the history strictly before it."""
    table = storage.read_table(
        states.scores.path(part_name("scores", partition)), ["slate_id", "row_logits"]
    )
    return dict(zip(
        table["slate_id"].to_pylist(), table["row_logits"].to_pylist(), strict=True
    ))


def text_logits(ground: Ground, states: States) -> FloatArray:
    """Return the test rows' logits of CRM and item texts together."""
    learned, chosen, asked = (
        TextRows.read(ground, states, window)
        for window in (Window.BANK, Window.VALIDATION, Window.TEST)
    )
    logits_N: FloatArray = fit(learned, chosen).decision_function(asked.features_NF)
    return logits_N


def fit(learned: TextRows, chosen: TextRows) -> Pipeline:
    """Return the logistic regression with the penalty that orders the rows `chosen` best."""
    models = [
        make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000)).fit(
            learned.features_NF, learned.labels_N
        ) for penalty in PENALTIES
    ]
    return max(models, key=lambda model: ctr.auc(
        chosen.labels_N, model.decision_function(chosen.features_NF)
    ))
