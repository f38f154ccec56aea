"""Raw rows -> interactions and quarantine.

    table -> chunks of CHECKED (values, source line, reason or null)
          -> by partition: sorted, duplicates found -> interactions, quarantine
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from engine.config import SourceConfig
from engine.data.schema import INTERACTIONS, QUARANTINE, partition_of
from engine.data.tables import Table
from engine.errors import DataQualityError, EmptySourceError

CHECKED = pa.schema([
    *INTERACTIONS,
    ("source", pa.string()), ("line", pa.int64()), ("text", pa.string()), ("reason", pa.string()),
    ("partition", pa.int32()),
])

NO_USER = "missing user"
NO_ITEM = "missing item"
BAD_TIME = "time cannot be read"
TIME_RANGE = "time out of range"
BAD_RATING = "rating cannot be read"
RATING_RANGE = "rating out of range"
BAD_LABEL = "label is not 0 or 1"
UNKNOWN_ITEM = "unknown item"
DUPLICATE = "duplicate event"

EVENT_KEY = ("user_id", "timestamp_s", "item_id")
"""Rows that are equal in these are one event."""

END_OF_TIME_S = 253_402_300_800
"""Year 10000; milliseconds taken for seconds lie beyond it."""

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


@dataclass(frozen=True, slots=True)
class Checker:
    """Reads and checks the rows of one source."""

    config: SourceConfig
    roles: Mapping[str, str]
    """user, item, timestamp, rating, label -> column."""
    num_partitions: int
    item_ids: pa.Array | None
    """Ids of the items file; None where there is no such file and every item is welcome."""
    user_columns: tuple[str, ...] = ()
    """Columns that say something of the user; they go along as text."""

    def empty(self) -> pa.Table:
        """Return a table of no rows with the columns of `check`."""
        columns = [(user_column(name), pa.string()) for name in self.user_columns]
        return pa.schema([*CHECKED, *columns]).empty_table()

    def chunks(self, table: Table) -> Iterator[pa.Table]:
        """Yield the rows of a file as tables of CHECKED and user columns, in source order."""
        names = list(dict.fromkeys([*self.roles.values(), *self.user_columns]))
        for chunk in table.chunks(names, self.config.chunk_rows):
            yield self.check(chunk, table.file.member or table.file.name)

    def check(self, chunk: pa.Table, source: str) -> pa.Table:
        """Return a chunk as CHECKED and user columns; the reason is the first that applies."""
        chunk = chunk.combine_chunks()
        cells = {role: _trim(_only(chunk[name])) for role, name in self.roles.items()}
        faults = _Faults(_only(chunk["fault"]))
        faults.add(_is_empty(cells["user"]), NO_USER)
        faults.add(_is_empty(cells["item"]), NO_ITEM)
        times = self._times(cells["timestamp"], faults)
        ratings = self._ratings(cells, faults)
        labels = self._labels(cells, ratings, faults)
        if self.item_ids is not None:
            faults.add(pc.invert(pc.is_in(cells["item"], self.item_ids)), UNKNOWN_ITEM)
        columns = {
            "user_id": cells["user"], "item_id": cells["item"], "timestamp_s": times,
            "rating": ratings, "label": labels,
            "source": pa.array([source] * len(chunk), pa.string()),
            "line": _only(chunk["line"]), "text": _only(chunk["text"]), "reason": faults.reasons,
        }
        columns["partition"] = self._partitions(columns)
        checked = {n: columns[n].cast(CHECKED.field(n).type) for n in CHECKED.names}
        return pa.table(checked | {user_column(n): chunk[n] for n in self.user_columns})

    def _times(self, cells: pa.Array, faults: "_Faults") -> pa.Array:
        numbers, is_number = _numbers(cells)
        iso = np.flatnonzero(~is_number)
        numbers[iso] = [_iso_seconds(cell) for cell in cells.take(pa.array(iso)).to_pylist()]
        bad = np.isnan(numbers)
        faults.add(pa.array(bad), BAD_TIME)
        seconds = np.floor(np.where(bad, 0, numbers))
        outside = (seconds < 0) | (seconds >= END_OF_TIME_S)
        faults.add(pa.array(outside), TIME_RANGE)
        return pa.array(np.where(outside, 0, seconds).astype(np.int64))

    def _ratings(self, cells: Mapping[str, pa.Array], faults: "_Faults") -> pa.Array:
        count = len(cells["user"])
        if "rating" not in cells or self.config.label.kind == "implicit":
            return pa.array(np.ones(count))
        ratings, is_number = _numbers(cells["rating"])
        faults.add(pa.array(~is_number), BAD_RATING)
        inside = (ratings >= self.config.rating_min) & (ratings <= self.config.rating_max)
        faults.add(pa.array(~inside), RATING_RANGE)
        return pa.array(np.where(inside, ratings, 1.0))

    def _labels(
        self, cells: Mapping[str, pa.Array], ratings: pa.Array, faults: "_Faults"
    ) -> pa.Array:
        if self.config.label.kind == "implicit":
            return pa.array(np.ones(len(ratings), np.int8))
        if self.config.label.kind == "threshold":
            return pa.array((ratings.to_numpy() >= self.config.label.threshold).astype(np.int8))
        labels, _ = _numbers(cells["label"])
        faults.add(pa.array((labels != 0) & (labels != 1)), BAD_LABEL)
        return pa.array((labels == 1).astype(np.int8))

    def _partitions(self, columns: Mapping[str, pa.Array]) -> pa.Array:
        """Return the user's partition; bad rows are spread by line, as they may lack a user."""
        encoded = pc.dictionary_encode(pc.fill_null(columns["user_id"], ""))
        words = encoded.dictionary.to_pylist()
        of_word = np.array([partition_of(word, self.num_partitions) for word in words])
        of_user = of_word[encoded.indices.to_numpy()] if words else np.zeros(0, int)
        bad = pc.is_valid(columns["reason"]).to_numpy(zero_copy_only=False)
        of_line = columns["line"].to_numpy() % self.num_partitions
        return pa.array(np.where(bad, of_line, of_user).astype(np.int32))


def user_column(column: str) -> str:
    """Return how a column of the source is called among those of CHECKED."""
    return f"user: {column}"


class _Faults:
    """The first reason of each row; null where the row is sound."""

    def __init__(self, reasons: pa.Array) -> None:
        self.reasons = reasons

    def add(self, is_bad: pa.Array, reason: str) -> None:
        """Give the reason to bad rows that have none yet."""
        first = pc.and_(is_bad, pc.is_null(self.reasons))
        self.reasons = pc.if_else(first, reason, self.reasons)


def _only(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _trim(cells: pa.Array) -> pa.Array:
    return pc.utf8_trim_whitespace(cells)


def _is_empty(cells: pa.Array) -> pa.Array:
    return pc.equal(pc.fill_null(cells, ""), "")


def _numbers(cells: pa.Array) -> tuple[Any, Any]:
    """Return float64 values (NaN where a cell is no finite number) and which cells are numbers."""
    looks = pc.fill_null(pc.match_substring_regex(cells, _NUMBER), False)
    plus = pc.utf8_ltrim(pc.if_else(looks, cells, None), "+")
    values = plus.cast(pa.float64()).to_numpy(zero_copy_only=False)
    values = np.array(values, np.float64)
    values[~np.isfinite(values)] = np.nan
    return values, ~np.isnan(values)


def _iso_seconds(cell: str | None) -> float:
    """Return the seconds since 1970 of an ISO 8601 text, UTC unless it says otherwise; or NaN."""
    try:
        time = datetime.fromisoformat(cell or "")
    except ValueError:
        return float("nan")
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def split_partition(rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return a partition's interactions (with user columns) and quarantine; rows in any order.

    Interactions are ordered by user, time and item. Of events with equal user, item and time the
    first of the source stays, the others are duplicates. Quarantine is in source order.
    """
    source_order = [("source", "ascending"), ("line", "ascending")]
    sound = rows.filter(pc.is_null(rows["reason"]))
    sound = sound.sort_by([
        ("user_id", "ascending"), ("timestamp_s", "ascending"), ("item_id", "ascending"),
        *source_order,
    ]).combine_chunks()
    repeats = find_repeats(sound, EVENT_KEY)
    reasons = pc.if_else(pa.array(repeats), DUPLICATE, pa.scalar(None, pa.string()))
    duplicates = sound.filter(pa.array(repeats))
    position = sound.schema.get_field_index("reason")
    duplicates = duplicates.set_column(position, "reason", reasons.filter(pa.array(repeats)))
    refused = pa.concat_tables([rows.filter(pc.is_valid(rows["reason"])), duplicates])
    refused = refused.sort_by(source_order).select(QUARANTINE.names).combine_chunks()
    kept = sound.filter(pa.array(~repeats)).drop_columns(["source", "line", "text", "reason"])
    return kept.drop_columns(["partition"]).combine_chunks(), refused


def find_repeats(ordered: pa.Table, names: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Return which rows equal the row before them in these columns."""
    repeats = np.zeros(len(ordered), bool)
    if len(ordered) > 1:
        repeats[1:] = True
        for name in names:
            column = _only(ordered[name])
            repeats[1:] &= pc.equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)
    return repeats


def first_rows(interactions: pa.Table) -> pa.Table:
    """Return each user's first row of a table that is ordered by user."""
    users = pc.dictionary_encode(_only(interactions["user_id"])).indices.to_numpy()
    return interactions.take(pa.array(np.flatnonzero(np.diff(users, prepend=-1))))


def count_reasons(quarantine: pa.Table) -> dict[str, int]:
    """Return the number of quarantined rows for each reason."""
    return dict(sorted(Counter(quarantine["reason"].to_pylist()).items()))


def check_quality(
    what: str, kept: int, reasons: Mapping[str, int], limit: float, quarantine_uri: str
) -> None:
    """Raise DataQualityError if too much was refused, EmptySourceError if no event was kept."""
    bad = sum(reasons.values())
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    if bad > limit * (kept + bad):
        raise DataQualityError(
            f"{bad} of {kept + bad} {what} are bad ({listed}), more than source.max_bad_share "
            f"{limit}; see {quarantine_uri}"
        )
    if not kept and what == "events":
        raise EmptySourceError(f"the source has no {what}")
