"""Item vectors -> an approximate search of them: faiss, inverted lists of whole vectors.

    k-means -> cells          each item is in the cell of the nearest centre (L2)
    state . centre -> order   cells are visited in this order, until enough allowed items were met
    selector -> best          of the cells visited; scored again by the exact product

An item is in one cell, so nothing is found twice. What is not enough is searched exactly.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import numpy as np

from engine.config import RetrievalConfig
from engine.retrieval.index import BoolArray, ExactIndex, products
from engine.retrieval.top_k import top_k
from engine.types import FloatArray, IntArray

SEED = 17
ROUNDS = 10
"""Of k-means."""
SAMPLE = 64
"""Items of each cell that k-means reads: the largest step of a build is then to sort all into
their cells."""
FEW = 0.05
"""Share of the catalogue up to which all allowed items are compared: in a cell, an item that is not
allowed costs most of what one that is compared does."""


class CellIndex:
    """Compares the allowed items of some cells. The same vectors give the same index."""

    def __init__(self, vectors_ID: FloatArray, config: RetrievalConfig) -> None:
        self._exact = ExactIndex(vectors_ID)
        self._probes = config.probes
        with _one_thread():
            self._centres_CD, self._cells_I = _sort_into_cells(vectors_ID)
            self._quantizer = faiss.IndexFlatIP(vectors_ID.shape[1])
            self._quantizer.add(self._centres_CD)
            self._lists = _fill(self._quantizer, vectors_ID, self._cells_I)
        self._sizes_C = np.bincount(self._cells_I, minlength=len(self._centres_CD))

    @property
    def vectors_ID(self) -> FloatArray:
        """Return the vector of every item."""
        return self._exact.vectors_ID

    @property
    def size_bytes(self) -> int:
        """Return the memory that it takes beside the vectors themselves."""
        own = self._lists.ntotal * (self._lists.code_size + np.dtype(np.int64).itemsize)
        return int(own + 2 * self._centres_CD.nbytes + self._cells_I.nbytes + self._sizes_C.nbytes)

    def search(self, state_D: FloatArray, allowed_I: BoolArray, limit: int) -> IntArray:
        """Return the best allowed items of the cells visited, as `ItemIndex` says.

        Where several items have the score of the last place, any of them may be the one found.
        """
        count = int(np.count_nonzero(allowed_I))
        if count <= max(limit, FEW * len(allowed_I)):
            return self._exact.search(state_D, allowed_I, limit)
        found = np.sort(self._visit(state_D, allowed_I, count, limit))
        if len(found) < limit:
            return self._exact.search(state_D, allowed_I, limit)
        scores = products(self._exact.vectors_ID[found], state_D)
        return found[top_k(scores, limit)].astype(np.int32)

    def _visit(
        self, state_D: FloatArray, allowed_I: BoolArray, count: int, limit: int
    ) -> IntArray:
        """Return up to `limit` allowed items of the first cells, in any order."""
        bits = np.packbits(allowed_I, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
        parameters = faiss.SearchParametersIVF(     # type: ignore[call-arg]  # not in its stubs
            nprobe=self._num_cells(state_D, allowed_I, count), sel=selector
        )
        _, [found] = self._lists.search(state_D[None], limit, params=parameters)
        return np.asarray(found[found >= 0])

    def _num_cells(self, state_D: FloatArray, allowed_I: BoolArray, count: int) -> int:
        """Return how many cells hold the allowed items that are to be compared.

        The best of few allowed items lie as far as the best of many more that are not filtered:
        where a share p is allowed, 1 / sqrt(p) times as many items are met, p of them compared.
        """
        order = np.argsort(-(self._centres_CD @ state_D))
        met = np.cumsum(self._allowed_sizes(allowed_I, count)[order])
        share = min(1.0, self._probes / len(order))
        wanted = share * math.sqrt(count * len(allowed_I))
        return min(len(order), int(np.searchsorted(met, wanted)) + 1)

    def _allowed_sizes(self, allowed_I: BoolArray, count: int) -> IntArray:
        """Return the number of allowed items of each cell; counts the allowed or the others."""
        is_rare = 2 * count <= len(allowed_I)
        rare = np.flatnonzero(allowed_I if is_rare else ~allowed_I)
        sizes = np.bincount(self._cells_I[rare], minlength=len(self._sizes_C))
        return np.asarray(sizes if is_rare else self._sizes_C - sizes)


def _sort_into_cells(vectors_ID: FloatArray) -> tuple[FloatArray, IntArray]:
    """Return the centres of about sqrt(items) cells, and the cell of each item."""
    size, width = vectors_ID.shape
    means = faiss.Kmeans(
        width, round(math.sqrt(size)), niter=ROUNDS, seed=SEED,
        min_points_per_centroid=1, max_points_per_centroid=SAMPLE,
    )
    means.train(vectors_ID)
    _, cells = means.index.search(vectors_ID, 1)
    return np.array(means.centroids), cells[:, 0].astype(np.int32)


def _fill(
    quantizer: faiss.IndexFlatIP, vectors_ID: FloatArray, cells_I: IntArray
) -> faiss.IndexIVFFlat:
    """Return the lists: items in the cells given, cells asked for by inner product."""
    lists = faiss.IndexIVFFlat(
        quantizer, vectors_ID.shape[1], quantizer.ntotal, faiss.METRIC_INNER_PRODUCT
    )
    lists.train(vectors_ID[:1])             # the centres are there: it only says so
    room = lists.invlists
    assert room is not None
    for cell, size in enumerate(np.bincount(cells_I, minlength=quantizer.ntotal).tolist()):
        room.resize(cell, size)             # lists that grow by themselves take a third more
        room.resize(cell, 0)
    cells = cells_I.astype(np.int64)
    vectors = np.ascontiguousarray(vectors_ID, np.float32)
    lists.add_core(len(vectors), faiss.swig_ptr(vectors), None, faiss.swig_ptr(cells))
    return lists


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread, so that sums have one order; then as many as before.

    faiss and torch may share one OpenMP runtime: the one number is then also the other's.
    """
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
