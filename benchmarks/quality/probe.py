"""Models that know the item alone and learn from the bank's own labels.

They bound from below what those labels allow: a language model that orders a slate worse than a
linear model on its own item vectors has not learned what the labels hold.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.quality.ground import Ground
from engine import storage
from engine.artifacts import Artifact
from engine.stages.items import VECTORS
from engine.types import FloatArray, IntArray, Window

PRIOR = 5.0
"""Events that the mean rate is worth."""
PENALTY = 0.1
"""Inverse strength of the linear model's L2 penalty."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The labelled candidates of the bank's prompts, and the items' text vectors."""

    items_N: IntArray
    labels_N: IntArray
    slates_N: IntArray
    vectors_ID: FloatArray

    @classmethod
    def read(cls, ground: Ground, prompts: Artifact) -> "Probe":
        """Return the candidates of the bank's window that the prompts hold."""
        names = ["slate_id", "window", "first_slot", "labels"]
        asked = [
            row for uri in prompts.files("prompts/")
            for row in storage.read_table(uri, names).to_pylist()
            if row["window"] == Window.BANK
        ]
        inputs = ground.inputs()
        items = {
            slate_id: of_slate
            for partition in inputs.partitions()
            for user in inputs.slates_at(partition, (Window.BANK,)).values()
            for slate_id, of_slate in zip(user.slate_ids, user.items, strict=True)
        }
        parts = [
            items[row["slate_id"]][row["first_slot"] : row["first_slot"] + len(row["labels"])]
            for row in asked
        ]
        slate_ids = [row["slate_id"] for row in asked]
        sizes = [len(row["labels"]) for row in asked]
        return cls(
            np.concatenate(parts), np.concatenate([row["labels"] for row in asked]),
            np.unique(np.repeat(slate_ids, sizes), return_inverse=True)[1],
            storage.read_tensors(ground.item_text.path(VECTORS))["vectors"],
        )

    def by_rates(self) -> FloatArray:
        """Return each item's smoothed share of positives [items + 1]."""
        size = len(self.vectors_ID)
        events = np.bincount(self.items_N, minlength=size)
        positives = np.bincount(self.items_N, self.labels_N, size)
        rates: FloatArray = (positives + PRIOR * self.labels_N.mean()) / (events + PRIOR)
        return rates

    def by_vectors(self) -> FloatArray:
        """Return w . vector of each item; w fits the order of all pairs within a slate."""
        firsts, seconds = pairs_within(self.slates_N, self.labels_N)
        gaps_PD = self.vectors_ID[self.items_N[firsts]] - self.vectors_ID[self.items_N[seconds]]
        scores: FloatArray = self.vectors_ID @ fit_order(gaps_PD, PENALTY)
        return scores


def pairs_within(slates_N: IntArray, labels_N: IntArray) -> tuple[IntArray, IntArray]:
    """Return the places of every positive and negative of one slate."""
    by_slate = np.argsort(slates_N, kind="stable")
    ends = np.cumsum(np.bincount(slates_N))[:-1]
    pairs = [
        pair for places in np.split(by_slate, ends)
        for pair in product(places[labels_N[places] == 1], places[labels_N[places] == 0])
    ]
    firsts, seconds = np.array(pairs).T
    return firsts, seconds


def fit_order(gaps_PD: FloatArray, inverse_penalty: float) -> FloatArray:
    """Return w [D] that puts the first of each pair before the second; a gap is first - second."""
    model = LogisticRegression(C=inverse_penalty, fit_intercept=False, max_iter=1000)
    model.fit(np.concatenate([gaps_PD, -gaps_PD]), np.repeat([1, 0], len(gaps_PD)))
    weights_D: FloatArray = model.coef_[0]
    return weights_D
