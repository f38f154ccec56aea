"""Scores artifact -> arrays of one window, bounded by whole users.

A window's rows are read file by file and only the columns that are measured; where there are more
than the limit, users are kept by a stable hash, so the same users every time.
"""

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from engine import storage
from engine.artifacts import Artifact
from engine.errors import ArtifactError
from engine.metrics.ctr import Rows
from engine.types import FeedbackKind, FloatArray, IntArray, Window

ALL_COLUMNS = ("popularity", "crm_row_logit", "crm_logit")
_KEYS = ("user_id", "slate_id", "label", "kind", "history_length")
SAMPLE_COLUMNS = (*ALL_COLUMNS, "llm_logit", "zero_shot_logit", "shuffled_logit")


@dataclass(frozen=True, slots=True)
class ScoreRows:
    """Rows of one window; all arrays have one entry for each row."""

    rows: Rows
    kinds: IntArray
    history_lengths: IntArray
    scores: Mapping[str, FloatArray]
    """Raw scores by column name; a column that holds a null is left out."""
    total: int
    """Rows of the window that could have been taken."""

    def where(self, kept: npt.NDArray[np.bool_]) -> "ScoreRows":
        """Return the rows under a boolean mask."""
        return ScoreRows(
            self.rows.where(kept), self.kinds[kept],
            self.history_lengths[kept], {name: each[kept] for name, each in self.scores.items()},
            int(kept.sum()),
        )

    def of_kind(self, kind: FeedbackKind) -> "ScoreRows":
        """Return the rows of one kind of feedback."""
        return self.where(self.kinds == kind)


def read_all(scores: Artifact, window: Window, *, max_rows: int) -> ScoreRows:
    """Return the rows of a window with the CRM's and popularity's scores."""
    total = sum(
        int(pc.sum(pc.equal(table["window"], int(window))).as_py() or 0)
        for table in _tables(scores, ["window"])
    )
    share = min(1.0, max_rows / max(1, total))
    names = [*_KEYS, "window", *ALL_COLUMNS]
    kept = []
    for table in _tables(scores, names):
        table = table.filter(pc.equal(table["window"], int(window)))
        kept.append(keep_users(table, share))
    return _rows(pa.concat_tables(kept), window, ALL_COLUMNS, total)


def read_sample(scores: Artifact, window: Window) -> ScoreRows:
    """Return the rows of a window that the language model scored."""
    table = _sample_table(scores, window, [*_KEYS, *SAMPLE_COLUMNS])
    return _rows(table, window, SAMPLE_COLUMNS, table.num_rows)


def sample_slates(scores: Artifact, window: Window) -> dict[str, str]:
    """Return the user of each slate that the language model scored, in order of appearance."""
    table = _sample_table(scores, window, ["user_id", "slate_id", "llm_logit"])
    return dict(zip(table["slate_id"].to_pylist(), table["user_id"].to_pylist(), strict=True))


def sample_keys(scores: Artifact, window: Window) -> dict[str, Sequence[Any]]:
    """Return user_id, slate_id, slot and item of each row of `read_sample`, in its order."""
    table = _sample_table(scores, window, ["user_id", "slate_id", "item", "llm_logit"])
    slots, seen = [], Counter[str]()
    for slate_id in table["slate_id"].to_pylist():
        slots.append(seen[slate_id])
        seen[slate_id] += 1
    names = "user_id", "slate_id", "item"
    return {"slot": slots, **{name: table[name].to_pylist() for name in names}}


def _tables(scores: Artifact, columns: list[str]) -> Iterator[pa.Table]:
    for uri in scores.files("scores/"):
        yield storage.read_table(uri, columns)


def _sample_table(scores: Artifact, window: Window, columns: Sequence[str]) -> pa.Table:
    kept = []
    for table in _tables(scores, ["window", *columns]):
        wanted = pc.and_(pc.equal(table["window"], int(window)), pc.is_valid(table["llm_logit"]))
        kept.append(table.filter(wanted))
    return pa.concat_tables(kept)


def keep_users(table: pa.Table, share: float) -> pa.Table:
    """Return the rows of a share of the users, whole users by a stable hash."""
    if share >= 1:
        return table
    users = table["user_id"].combine_chunks().dictionary_encode()
    names = users.dictionary.to_pylist()
    chosen = np.array([zlib.crc32(f"evaluate:{name}".encode()) / 2**32 < share for name in names])
    return table.filter(pa.array(chosen[users.indices.to_numpy()], pa.bool_()))


def _rows(table: pa.Table, window: Window, columns: Sequence[str], total: int) -> ScoreRows:
    if not table.num_rows:
        raise ArtifactError(f"the scores hold no row of window {window.name} to measure")
    return rows_of(table, columns, total)


def rows_of(table: pa.Table, columns: Sequence[str], total: int) -> ScoreRows:
    """Return the rows of a table of user_id, slate_id, label, kind, history_length and scores."""
    users, slates = (
        pc.dictionary_encode(table[name].combine_chunks()).indices.to_numpy()
        for name in ("user_id", "slate_id")
    )
    full = [name for name in columns if not table[name].null_count]
    return ScoreRows(
        Rows.of(users, table["label"].to_numpy(), slates), table["kind"].to_numpy(),
        table["history_length"].to_numpy(), {name: table[name].to_numpy() for name in full}, total,
    )
