"""Deleted users: their rows up to the deletion never reach a table that training reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine import storage


@dataclass(frozen=True, slots=True)
class Deletions:
    """When users were deleted; about 30 bytes each in memory."""

    user_ids: pa.Array
    deleted_s: pa.Array

    @classmethod
    def of(cls, times: Mapping[str, int]) -> "Deletions":
        """Return the deletions of a mapping from user id to seconds since 1970."""
        return cls(pa.array(times.keys(), pa.string()), pa.array(times.values(), pa.int64()))

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
        deleted_s = self.deleted_s.take(pc.index_in(checked["user_id"], self.user_ids))
        is_later = pc.greater(checked["timestamp_s"], deleted_s)
        is_sound = pc.is_null(checked["reason"])
        remaining = checked.filter(pc.fill_null(pc.and_(is_later, is_sound), True))
        return _without_nobodys_text(remaining, remaining["user_id"])

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
