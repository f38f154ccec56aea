import threading
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine, inspect, text

from engine.state.database import (
    EVENTS,
    connect,
    database_exists,
    lock_to_store,
    open_database,
    writing,
)
from engine.state.deletions import all_deletions, delete_user, is_deleted
from engine.state.events import Event, EventState, append
from engine.state.histories import PastEvent, count_events, newest_events, seed

NOW_S = 1_800_000_000
EVENT = Event("e1", "ann", "m1", 100, 4.0, 1)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.state.deletions.time.time", lambda: NOW_S + 0.9)


def test_a_deleted_user_leaves_no_event_and_others_stay(database: Engine) -> None:
    seed(database, [("ann", [PastEvent("m1", 5, 4.0, 1)]), ("bob", [PastEvent("m1", 5, 4.0, 1)])])
    append(database, [EVENT, replace(EVENT, event_id="e2", timestamp_s=NOW_S + 50)])
    deletion = delete_user(database, "ann")
    assert (deletion.user_id, deletion.deleted_s, deletion.events) == ("ann", NOW_S, 3)
    assert newest_events(database, "ann", 9) == []
    assert count_events(database) == 1
    assert is_deleted(database, "ann")
    assert not is_deleted(database, "bob")


def test_what_was_before_the_deletion_is_refused_and_what_comes_later_is_stored(
    database: Engine,
) -> None:
    append(database, [EVENT])
    delete_user(database, "ann")
    later = replace(EVENT, event_id="e2", timestamp_s=NOW_S + 1)
    sent = [EVENT, replace(EVENT, event_id="e3", timestamp_s=NOW_S), later, later,
            replace(EVENT, user_id="bob")]
    statuses = append(database, sent)
    assert [status.state.value for status in statuses] == [
        "rejected", "rejected", "stored", "duplicate", "stored",
    ]
    assert "'ann' was deleted; events up to 2027-01-15T08:00:00+00:00" in str(statuses[0].reason)
    assert [event.timestamp_s for event in newest_events(database, "ann", 9)] == [NOW_S + 1]


def test_a_seed_does_not_bring_a_deleted_user_back(database: Engine) -> None:
    delete_user(database, "ann")
    old, new = PastEvent("m1", 5, 4.0, 1), PastEvent("m2", NOW_S + 1, 4.0, 1)
    assert seed(database, [("ann", [old, new]), ("bob", [old])]) == 3
    assert newest_events(database, "ann", 9) == [new]
    assert newest_events(database, "bob", 9) == [old]
    assert seed(database, [("ann", [old])]) == 1
    assert newest_events(database, "ann", 9) == [new]


def test_deleting_again_moves_the_time_and_an_unknown_user_is_remembered(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert delete_user(database, "zoe").events == 0
    delete_user(database, "ann")
    monkeypatch.setattr("engine.state.deletions.time.time", lambda: NOW_S + 7)
    assert delete_user(database, "ann").deleted_s == NOW_S + 7
    monkeypatch.setattr("engine.state.deletions.time.time", lambda: NOW_S + 3)
    assert delete_user(database, "ann").deleted_s == NOW_S + 7      # another machine's clock
    assert all_deletions(database) == {"ann": NOW_S + 7, "zoe": NOW_S}
    assert list(all_deletions(database)) == ["ann", "zoe"]


def test_many_users_at_once_are_looked_up(database: Engine) -> None:
    delete_user(database, "u700")
    events = [replace(EVENT, event_id=f"e{n}", user_id=f"u{n}") for n in range(1200)]
    states = [status.state for status in append(database, events)]
    assert [n for n, state in enumerate(states) if state is EventState.REJECTED] == [700]


def test_events_that_are_being_stored_are_deleted_or_refused(
    database: Engine, database_url: str
) -> None:
    """A deletion waits for a transaction that stores; none that begins later slips past it."""
    other = open_database(database_url)
    deleted = threading.Event()

    def delete_ann() -> None:
        delete_user(other, "ann")
        deleted.set()

    deleter = threading.Thread(target=delete_ann)
    with writing(database).begin() as connection:
        lock_to_store(connection)
        deleter.start()
        assert not deleted.wait(0.3)
        connection.execute(EVENTS.insert().values(
            event_id="e0", user_id="ann", item_id="m1", timestamp_s=5, label=1, received_s=5
        ))
    deleter.join(timeout=30)
    assert deleted.is_set()
    assert count_events(database) == 0
    assert append(database, [EVENT])[0].state is EventState.REJECTED
    other.dispose()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)     # SQLite has one writer
def test_storing_does_not_wait_for_storing(database: Engine, database_url: str) -> None:
    other = open_database(database_url)
    with writing(database).begin() as connection:
        lock_to_store(connection)
        assert append(other, [EVENT])[0].state is EventState.STORED
    other.dispose()


def test_a_database_of_before_there_were_deletions_has_none_and_stays_as_it_is(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/old.db"
    assert not database_exists(url)
    database = connect(url)
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE events (event_id TEXT)"))
    assert database_exists(url)
    assert all_deletions(database) == {}
    assert inspect(database).get_table_names() == ["events"]
    database.dispose()
