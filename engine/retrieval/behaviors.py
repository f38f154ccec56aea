"""Candidate -> the past events that are most relevant to it.

Relevance is the cosine of item text vectors; an event of the candidate itself comes first.
"""

import numpy as np

from engine.types import FloatArray, IntArray

SAME_ITEM_BONUS = 2.0
"""More than any cosine: an earlier event of the same item outranks every other event."""

GRADES = 10_000
"""Cosines are compared in steps of 1 / GRADES, so that the last bit of a matrix product never
decides between two events."""

HIDDEN = np.iinfo(np.int64).min

CHUNK_ENTRIES = 4_000_000
"""Similarities held at a time."""


def retrieve_behaviors(
    vectors_ID: FloatArray,
    history_L: IntArray,
    candidates_B: IntArray,
    lengths_B: IntArray,
    *,
    max_behaviors: int,
    max_history: int,
) -> tuple[IntArray, FloatArray]:
    """Return positions [B, S] in the history, oldest first, -1 padding behind; and similarities.

    Row b sees events `max(0, lengths_B[b] - max_history)` up to `lengths_B[b]`, exclusive. Ties go
    to the newer event. Similarities are cosines, 0 at padding. S is `max_behaviors`.
    """
    chunk = max(1, CHUNK_ENTRIES // max(1, len(history_L)))
    positions = np.full((len(candidates_B), max_behaviors), -1, np.int32)
    cosines = np.zeros((len(candidates_B), max_behaviors), np.float32)
    for start in range(0, len(candidates_B), chunk):
        rows = slice(start, start + chunk)
        positions[rows], cosines[rows] = _retrieve_chunk(
            vectors_ID, history_L, candidates_B[rows], lengths_B[rows], max_behaviors, max_history
        )
    return positions, cosines


def _retrieve_chunk(
    vectors_ID: FloatArray, history_L: IntArray, candidates_B: IntArray, lengths_B: IntArray,
    max_behaviors: int, max_history: int,
) -> tuple[IntArray, FloatArray]:
    last = int(lengths_B.max(initial=0))
    first = max(0, int(lengths_B.min(initial=last)) - max_history)
    window = history_L[first:last]
    size = min(max_behaviors, len(window))
    found = np.full((len(candidates_B), max_behaviors), -1, np.int32)
    cosines = np.zeros((len(candidates_B), max_behaviors), np.float32)
    if size == 0:
        return found, cosines
    places = np.arange(first, last)
    visible = (places < lengths_B[:, None]) & (places >= lengths_B[:, None] - max_history)
    grades_BL = np.rint((vectors_ID[candidates_B] @ vectors_ID[window].T) * GRADES).astype(np.int64)
    bonus_BL = np.where(window == candidates_B[:, None], round(SAME_ITEM_BONUS * GRADES), 0)
    # No two keys are equal, so the largest are the same however they are found.
    keys_BL = np.where(visible, (grades_BL + bonus_BL) * len(window) + places - first, HIDDEN)
    chosen = np.argpartition(keys_BL, len(window) - size, axis=1)[:, len(window) - size :]
    hidden = np.take_along_axis(keys_BL, chosen, axis=1) == HIDDEN
    chosen = np.sort(np.where(hidden, len(window), chosen), axis=1)
    padding = chosen == len(window)
    chosen = np.where(padding, 0, chosen)
    found[:, :size] = np.where(padding, -1, chosen + first)
    near = np.take_along_axis(grades_BL, chosen, axis=1).astype(np.float32) / GRADES
    cosines[:, :size] = np.where(padding, 0, near)
    return found, cosines
