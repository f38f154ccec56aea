"""The ledger of nights: which data, parent, code and seed made which release, and what was decided.

    opened -> promoted | held | failed        `opened_id` of the end names the beginning
    rolled_back                               from the release `parent_id` back to `release_id`
    promoted                                  by hand, without `opened_id`: likewise

Rows are added, never changed or removed (the database refuses it), so they must not name users.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from sqlalchemy import Engine, insert, select

from engine.state.database import NIGHTS, writing


class EntryKind(StrEnum):
    """What happened."""

    OPENED = "opened"
    PROMOTED = "promoted"
    HELD = "held"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger."""

    kind: EntryKind
    parent_id: str
    """The release that was live."""
    release_id: str | None = None
    """The challenger, named when its night is opened; after a rollback, what is live again."""
    since_s: int | None = None
    until_s: int | None = None
    """The night takes events that were received at since < time <= until."""
    reasons: Sequence[str] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)
    """JSON: keys of the data, version of the code, seed, metrics."""
    opened_id: int | None = None
    """The entry that this one ends."""
    night_id: int | None = None
    """Number of the entry, given by `append`."""
    at_s: int | None = None
    """When it was appended."""

    @property
    def bounds_s(self) -> tuple[int, int]:
        """Return since and until of a night."""
        assert self.since_s is not None
        assert self.until_s is not None
        return self.since_s, self.until_s

    def ended(
        self, kind: EntryKind, reasons: Sequence[str], detail: Mapping[str, Any]
    ) -> "Entry":
        """Return how a night ended, of which this is the appended beginning."""
        assert self.kind is EntryKind.OPENED
        assert self.night_id is not None
        return replace(self, kind=kind, reasons=tuple(reasons), detail=detail,
                       opened_id=self.night_id, night_id=None, at_s=None)


def append(engine: Engine, entry: Entry) -> Entry:
    """Store an entry, durable on return; return it with its number and time.

    Numbers that JSON does not know (NaN, infinity) are stored as text.
    """
    at_s = int(time.time())
    row = {
        "opened_id": entry.opened_id, "kind": entry.kind.value, "at_s": at_s,
        "parent_id": entry.parent_id, "release_id": entry.release_id, "since_s": entry.since_s,
        "until_s": entry.until_s, "reasons": list(entry.reasons), "detail": _as_json(entry.detail),
    }
    with writing(engine).begin() as connection:
        night_id = connection.scalar(insert(NIGHTS).values(row).returning(NIGHTS.c.night_id))
    return replace(entry, night_id=night_id, at_s=at_s)


def entries(engine: Engine) -> list[Entry]:
    """Return the whole ledger, oldest first."""
    with engine.connect() as connection:
        rows = connection.execute(select(NIGHTS).order_by(NIGHTS.c.night_id))
        return [
            Entry(**{**row._mapping, "kind": EntryKind(row.kind), "reasons": tuple(row.reasons)})
            for row in rows
        ]


def watermark_of(engine: Engine, release_id: str) -> int | None:
    """Return the time up to which a release has learned the events that were received: the
    `until_s` of the night that made it. None for the release of a whole training.

    So the watermark moves with the live release alone: a night that held moves none, a rollback
    moves it back, and a held release that somebody promotes by hand brings its own. The beginning
    of a night counts, too: its release may be live, and the process killed before it said so.
    """
    columns = NIGHTS.c
    kinds = (EntryKind.OPENED, EntryKind.PROMOTED, EntryKind.HELD)
    statement = (
        select(columns.until_s)
        .where(columns.release_id == release_id, columns.kind.in_(kinds),
               columns.until_s.is_not(None))
        .order_by(columns.night_id.desc()).limit(1)
    )
    with engine.connect() as connection:
        until_s: int | None = connection.scalar(statement)
    return until_s


def unfinished(engine: Engine) -> Entry | None:
    """Return the newest beginning of a night if nothing ended it: it was interrupted.

    Who goes on takes its bounds again, so that stages are found as they are and the same release
    comes out, if its parent is still live. If its own release is live, the promotion alone was not
    recorded. If another one is live, somebody changed that meanwhile, and the night is a new one.
    """
    ledger = entries(engine)
    begun = [entry for entry in ledger if entry.kind is EntryKind.OPENED]
    ended = {entry.opened_id for entry in ledger}
    return None if not begun or begun[-1].night_id in ended else begun[-1]


def _as_json(value: Any) -> Any:
    """Return a JSON value without NaN and infinities, which PostgreSQL refuses."""
    if isinstance(value, Mapping):
        return {str(name): _as_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
