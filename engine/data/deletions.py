"""Deleted users: their rows up to the deletion never reach a table that training reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine import storage
from engine.data.schema import DELETED


@dataclass(frozen=True, slots=True)
class Deletions:
    """When users were deleted; about 30 bytes each in memory."""

    user_ids: pa.Array
    deleted_s: pa.Array

    @classmethod
    def of(cls, times: Mapping[str, int]) -> "Deletions":
        """Return the deletions of a mapping from user id to seconds since 1970."""
        return cls(pa.array(times.keys(), pa.string()), pa.array(times.values(), pa.int64()))

    @classmethod
    def from_table(cls, table: pa.Table) -> "Deletions":
        """Read a table of DELETED."""
        table = table.combine_chunks()
        columns = (table[name].to_pylist() for name in DELETED.names)
        return cls.of(dict(zip(*columns, strict=True)))

    def to_table(self) -> pa.Table:
        """Return a table of DELETED."""
        return pa.table([self.user_ids, self.deleted_s], schema=DELETED)

    def merged(self, other: "Deletions") -> "Deletions":
        """Return both; where a user was deleted twice, the later time."""
        times: dict[str, int] = {}
        for each in (self, other):
            pairs = zip(each.user_ids.to_pylist(), each.deleted_s.to_pylist(), strict=True)
            for user_id, deleted_s in pairs:
                times[user_id] = max(deleted_s, times.get(user_id, deleted_s))
        return Deletions.of(dict(sorted(times.items())))

    def until(self, time_s: int) -> "Deletions":
        """Return those of users who were deleted up to a time."""
        is_early = pc.less_equal(self.deleted_s, time_s)
        return Deletions(self.user_ids.filter(is_early), self.deleted_s.filter(is_early))

    def without(self, other: "Deletions") -> "Deletions":
        """Return those of users of whom the other has none."""
        is_other = pc.invert(pc.is_in(self.user_ids, other.user_ids))
        return Deletions(self.user_ids.filter(is_other), self.deleted_s.filter(is_other))

    def settings(self) -> dict[str, Any]:
        """Return what a table depends on, naming nobody; nothing if nobody was deleted."""
        if len(self.user_ids) == 0:
            return {}
        times = sorted(zip(self.user_ids.to_pylist(), self.deleted_s.to_pylist(), strict=True))
        return {"deletions": storage.sha256(storage.dump_json(times))}

    def remaining(self, checked: pa.Table) -> pa.Table:
        """Return the rows (interactions.CHECKED) without those up to the user's deletion.

        A bad row of a deleted user goes, too: quarantine would keep its text. Where nobody can tell
        whose a bad row is, its text goes.
        """
        if len(self.user_ids) == 0:
            return checked
        is_later = pc.greater(checked["timestamp_s"], self._times_of(checked))
        is_sound = pc.is_null(checked["reason"])
        remaining = checked.filter(pc.fill_null(pc.and_(is_later, is_sound), True))
        return _without_nobodys_text(remaining, remaining["user_id"])

    def later_events(self, events: pa.Table) -> pa.Table:
        """Return the rows (schema.INTERACTIONS) without those up to the user's deletion."""
        is_later = pc.greater(events["timestamp_s"], self._times_of(events))
        return events.filter(pc.fill_null(is_later, True))

    def later_histories(self, histories: pa.Table) -> pa.Table:
        """Return histories without the events up to the user's deletion, in order of user id.

        Who has no event left is left out. Needs `user_id` and `timestamps_s`.
        """
        is_deleted = pc.is_in(histories["user_id"], self.user_ids)
        if not pc.any(is_deleted).as_py():
            return histories
        cut = self._cut(histories.filter(is_deleted).combine_chunks())
        others = histories.filter(pc.invert(is_deleted))
        return pa.concat_tables([others, cut]).sort_by("user_id")

    def _cut(self, histories: pa.Table) -> pa.Table:
        """Return histories of deleted users without the events up to then."""
        times = histories["timestamps_s"].combine_chunks()
        rows = pc.list_parent_indices(times)
        is_later = pc.greater(times.flatten(), self._times_of(histories).take(rows))
        lengths = np.bincount(rows.filter(is_later).to_numpy(), minlength=len(histories))
        offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
        for place, field in enumerate(histories.schema):
            if pa.types.is_list(field.type):
                values = histories[place].combine_chunks().flatten().filter(is_later)
                lists = pa.ListArray.from_arrays(offsets, values)
                histories = histories.set_column(place, field, lists)
        return histories.filter(pa.array(lengths > 0))

    def _times_of(self, rows: pa.Table) -> pa.Array:
        """Return when the user of each row was deleted; null if never."""
        places = pc.index_in(rows["user_id"], self.user_ids)
        return self.deleted_s.take(places.combine_chunks())

    def without_users(self, profiles: pa.Table) -> pa.Table:
        """Return the profiles of users who were never deleted."""
        return profiles.filter(pc.invert(pc.is_in(profiles["user_id"], self.user_ids)))

    def other_users(self, rows: pa.Table, id_column: str) -> pa.Table:
        """Return a users file's rows (with their `text`) without those of deleted users, whenever
        that was; the text of rows whose id cannot be read goes, too.
        """
        if len(self.user_ids) == 0:
            return rows
        ids = pc.utf8_trim_whitespace(rows[id_column])
        rows = _without_nobodys_text(rows, ids)
        return rows.filter(pc.invert(pc.is_in(ids, self.user_ids)))


def _without_nobodys_text(rows: pa.Table, ids: pa.ChunkedArray) -> pa.Table:
    is_nobodys = pc.equal(pc.fill_null(ids, ""), "")
    texts = pc.if_else(is_nobodys, None, rows["text"])
    return rows.set_column(rows.schema.get_field_index("text"), "text", texts)
