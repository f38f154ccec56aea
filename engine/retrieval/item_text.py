"""Item text -> raw vectors (elsewhere) -> centred, projected, unit vectors.

The projector is kept with the vectors, so an item that arrives later is placed in the same space.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.errors import ArtifactError
from engine.types import FloatArray, History


def item_text(title: str, fields: Mapping[str, Sequence[str]]) -> str:
    """Return what the encoder reads of an item: title, then each field that has a value."""
    parts = [f"{name}: {', '.join(values)}" for name, values in fields.items() if values]
    return ". ".join([title, *parts])


def liked_centre(history: History, vectors_ID: FloatArray) -> FloatArray:
    """Return the mean vector [D] of what the user liked: it does not look at any candidate."""
    liked = history.items[history.labels > 0]
    if len(liked) == 0:
        return np.zeros(vectors_ID.shape[1], np.float32)
    centre_D: FloatArray = vectors_ID[liked].mean(axis=0)
    return centre_D


@dataclass(frozen=True, slots=True)
class Projector:
    """Centring and principal components (H raw width, D projected width)."""

    mean_H: FloatArray
    components_DH: FloatArray

    def project(self, raw_BH: FloatArray) -> FloatArray:
        """Return float32 unit rows; a row equal to the mean becomes zero."""
        if raw_BH.shape[1] != len(self.mean_H):
            raise ArtifactError(
                f"text vectors have width {raw_BH.shape[1]}, the projector {len(self.mean_H)}: "
                "it was fitted on another encoder"
            )
        projected = (raw_BH.astype(np.float64) - self.mean_H) @ self.components_DH.T
        norms = np.linalg.norm(projected, axis=1, keepdims=True)
        return (projected / np.where(norms > 1e-9, norms, 1.0)).astype(np.float32)


def fit_projector(raw_BH: FloatArray, dims: int) -> Projector:
    """Return the projector onto the `dims` directions of largest variance.

    The largest coefficient of a component is positive, so equal inputs give equal vectors. Where
    there are fewer directions than `dims`, the rest are zero.
    """
    raw = raw_BH.astype(np.float64)
    mean = raw.mean(axis=0)
    centred = raw - mean
    variances, vectors = np.linalg.eigh(centred.T @ centred)
    order = np.argsort(variances)[::-1][:dims]
    kept = order[variances[order] > 1e-9 * max(float(variances.max()), 1e-30)]
    components = np.zeros((dims, raw.shape[1]))
    components[: len(kept)] = vectors[:, kept].T
    largest = components[np.arange(dims), np.abs(components).argmax(axis=1)]
    components *= np.where(largest < 0, -1.0, 1.0)[:, None]
    return Projector(mean.astype(np.float32), components.astype(np.float32))
