"""The ledger keeps what it was told, and says what a release has learned."""

import pickle
import re
from pathlib import Path

import pytest
from sqlalchemy import Engine, delete, text, update
from sqlalchemy.exc import DatabaseError

from engine.state import nights
from engine.state.database import NIGHTS, writing
from engine.state.nights import Entry, EntryKind, append, entries, unfinished, watermark_of


def open_night(database: Engine, parent: str, challenger: str, since: int, until: int) -> Entry:
    return append(database, Entry(EntryKind.OPENED, parent, challenger, since, until))


def end(database: Engine, opened: Entry, kind: EntryKind) -> Entry:
    return append(database, opened.ended(kind, ["because"], {}))


def test_entries_come_back_as_they_were_in_their_order(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nights.time, "time", lambda: 77.9)
    detail = {"seed": 3, "inputs": {"drop": "abc"}, "auc": 0.5, "list": [1, None]}
    opened = append(database, Entry(EntryKind.OPENED, "r1", "r2", 10, 20, (), detail))
    ended = append(database, opened.ended(EntryKind.HELD, ["too 'bad'", "Zürich"], {"b": 1}))
    back = append(database, Entry(EntryKind.ROLLED_BACK, "r1", "r0"))
    assert entries(database) == [opened, ended, back]
    assert [entry.night_id for entry in entries(database)] == [1, 2, 3]
    assert (ended.opened_id, ended.parent_id, ended.release_id) == (1, "r1", "r2")
    assert (ended.since_s, ended.until_s, ended.at_s) == (10, 20, 77)
    assert opened.detail == detail
    assert pickle.loads(pickle.dumps(ended)) == ended


def test_a_number_that_json_does_not_know_is_kept_as_text(database: Engine) -> None:
    detail = {"auc": float("nan"), "deep": [{"loss": float("-inf")}, (1.0,)]}
    append(database, Entry(EntryKind.FAILED, "r1", detail=detail))
    assert entries(database)[0].detail == {"auc": "nan", "deep": [{"loss": "-inf"}, [1.0]]}


def test_nothing_in_the_ledger_is_changed_or_removed(database: Engine) -> None:
    first = open_night(database, "r1", "r2", 0, 10)
    for statement in (
        update(NIGHTS).values(until_s=99), delete(NIGHTS),
        update(NIGHTS).where(NIGHTS.c.night_id == 1).values(kind="promoted"),
    ):
        with pytest.raises(DatabaseError, match="append-only"), \
                writing(database).begin() as connection:
            connection.execute(statement)
    assert entries(database) == [first]
    code = Path(nights.__file__).read_text()
    assert not re.search(r"\b(update|delete|upsert)\(", code)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_the_ledger_is_not_emptied_at_once(database: Engine) -> None:
    open_night(database, "r1", "r2", 0, 10)
    with pytest.raises(DatabaseError, match="append-only"), writing(database).begin() as connection:
        connection.execute(text("TRUNCATE nights"))
    assert len(entries(database)) == 1


def test_the_watermark_moves_with_the_release_that_used_it(database: Engine) -> None:
    assert watermark_of(database, "r0") is None         # a whole training's
    end(database, open_night(database, "r0", "r1", 0, 10), EntryKind.PROMOTED)
    assert (watermark_of(database, "r0"), watermark_of(database, "r1")) == (None, 10)
    end(database, open_night(database, "r1", "r2", 10, 20), EntryKind.HELD)
    assert watermark_of(database, "r1") == 10           # the next night takes both days
    end(database, open_night(database, "r1", "r3", 10, 30), EntryKind.PROMOTED)
    assert watermark_of(database, "r3") == 30
    append(database, Entry(EntryKind.ROLLED_BACK, "r3", "r1"))
    assert watermark_of(database, "r1") == 10
    assert watermark_of(database, "r2") == 20           # if somebody promotes it by hand


def test_a_release_that_never_was_made_moves_no_watermark(database: Engine) -> None:
    failed = append(database, Entry(EntryKind.OPENED, "r0", None, 0, 10))
    append(database, failed.ended(EntryKind.FAILED, ["disk full"], {}))
    assert watermark_of(database, "r0") is None


def test_an_interrupted_night_is_found_with_its_bounds_until_it_is_ended(
    database: Engine,
) -> None:
    assert unfinished(database) is None
    for kind in (EntryKind.PROMOTED, EntryKind.HELD, EntryKind.FAILED):
        opened = open_night(database, "r1", f"{kind}", 10, 20)
        assert unfinished(database) == opened
        append(database, Entry(EntryKind.ROLLED_BACK, "r1", "r0"))
        assert unfinished(database) == opened
        end(database, opened, kind)
        assert unfinished(database) is None


def test_the_end_of_another_night_ends_none(database: Engine) -> None:
    stalled = open_night(database, "r1", "r2", 10, 20)
    newer = open_night(database, "r1", "r3", 10, 30)
    end(database, stalled, EntryKind.FAILED)
    assert unfinished(database) == newer
    end(database, newer, EntryKind.HELD)
    assert unfinished(database) is None


def test_a_promotion_that_was_not_recorded_is_known_by_the_beginning(database: Engine) -> None:
    """The process was killed after the release went live, before the ledger said so."""
    opened = open_night(database, "r1", "r2", 10, 20)
    assert watermark_of(database, "r2") == 20
    assert unfinished(database) == opened
