"""Item vectors -> the allowed items of largest inner product with a user state, best first.

A small catalogue is searched exactly, a large one with faiss (`cells.py`). Items are rows.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engine.config import RetrievalConfig
from engine.retrieval.top_k import top_k
from engine.types import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]

FEW = 0.1
"""Share of the catalogue up to which it is cheaper to copy the allowed rows than to read all: at
0.1 it takes half to three quarters of the time, at 0.25 up to twice (10^5 and 10^6 items of width
64, 22 November 2026)."""
BLOCK = 16
"""Rows: a multiple of what matrix products take at a time."""


class ItemIndex(Protocol):
    """Finds items by their vectors. Safe to use from several threads."""

    @property
    def vectors_ID(self) -> FloatArray:
        """Return the vector of every item."""

    def search(self, state_D: FloatArray, allowed_I: BoolArray, limit: int) -> IntArray:
        """Return the `limit` best allowed items, or all that are allowed if those are fewer.

        Best first by inner product; ties: the smaller item first.
        """


def build_index(vectors_ID: FloatArray, config: RetrievalConfig | None) -> ItemIndex:
    """Return the index of vectors whose row 0 is the unknown item; None: an exact one."""
    if config is None or len(vectors_ID) - 1 <= config.exact_items:
        return ExactIndex(vectors_ID)
    # faiss takes a quarter of a second and 49 MiB, which small catalogues need not pay.
    from engine.retrieval.cells import CellIndex

    return CellIndex(vectors_ID, config)


@dataclass(frozen=True, slots=True)
class ExactIndex:
    """Compares every allowed item."""

    vectors_ID: FloatArray

    def search(self, state_D: FloatArray, allowed_I: BoolArray, limit: int) -> IntArray:
        """Return the best allowed items, as `ItemIndex` says."""
        items = np.flatnonzero(allowed_I)
        if len(items) <= FEW * len(allowed_I):
            scores = products(self.vectors_ID[items], state_D)
        else:
            scores = products(self.vectors_ID, state_D)[items]      # reads the matrix, no copy
        return items[top_k(scores, limit)].astype(np.int32)


@dataclass(frozen=True, slots=True)
class PatchedIndex:
    """An index of before, beside which items that changed or came since are compared exactly."""

    before: ItemIndex
    vectors_ID: FloatArray
    is_fresh_I: BoolArray

    def search(self, state_D: FloatArray, allowed_I: BoolArray, limit: int) -> IntArray:
        """Return the best allowed items, as `ItemIndex` says."""
        known_I = (allowed_I & ~self.is_fresh_I)[: len(self.before.vectors_ID)]
        fresh = np.flatnonzero(allowed_I & self.is_fresh_I)
        items = np.union1d(self.before.search(state_D, known_I, limit), fresh)
        scores = products(self.vectors_ID[items], state_D)
        return items[top_k(scores, limit)].astype(np.int32)


def with_items(index: ItemIndex, vectors_ID: FloatArray, changed: IntArray) -> ItemIndex:
    """Return an index of today's vectors, of which those of these items are new or other ones."""
    if isinstance(index, ExactIndex):
        return ExactIndex(vectors_ID)
    before = index.before if isinstance(index, PatchedIndex) else index
    fresh_I = index.is_fresh_I if isinstance(index, PatchedIndex) else np.zeros(0, bool)
    fresh_I = np.pad(fresh_I, (0, len(vectors_ID) - len(fresh_I)))
    fresh_I[changed] = True
    return PatchedIndex(before, vectors_ID, fresh_I)


def products(vectors_BD: FloatArray, state_D: FloatArray) -> FloatArray:
    """Return the inner products; equal vectors have equal ones, wherever they stand.

    A matrix product takes rows in blocks and rounds those that do not fill the last one in another
    way: here they stand in a whole block, too.
    """
    scores_B = vectors_BD @ state_D
    rest = len(vectors_BD) % BLOCK
    if rest:
        block = np.resize(vectors_BD[-rest:], (BLOCK, vectors_BD.shape[1]))
        scores_B[-rest:] = (block @ state_D)[:rest]
    return np.asarray(scores_B)
