import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete

from engine.state.database import EVENTS, lock_to_delete, open_database, writing
from engine.state.events import Event, EventState, append
from engine.state.histories import count_events, count_received, newest_events

EVENT = Event("e1", "ann", "m1", 100, 4.0, 1)


def states(database: Engine, *events: Event) -> list[str]:
    return [status.state.value for status in append(database, events)]


def test_an_event_id_is_stored_once(database: Engine) -> None:
    assert states(database, EVENT) == ["stored"]
    assert states(database, EVENT) == ["duplicate"]
    assert count_events(database) == 1


def test_an_event_id_is_stored_once_within_one_call(database: Engine) -> None:
    other = replace(EVENT, event_id="e2")
    assert states(database, EVENT, other, EVENT) == ["stored", "stored", "duplicate"]
    assert count_events(database) == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"user_id": "bob"}, "user_id"), ({"item_id": "m2"}, "item_id"),
        ({"timestamp_s": 101}, "timestamp_s"), ({"rating": 4.5}, "rating"),
        ({"rating": None}, "rating"), ({"label": 0}, "label"),
    ],
)
def test_other_content_under_a_known_id_is_rejected(
    database: Engine, change: dict[str, object], named: str
) -> None:
    append(database, [EVENT])
    [status] = append(database, [replace(EVENT, **change)])
    assert status.state is EventState.REJECTED
    assert named in str(status.reason)
    assert "'e1'" in str(status.reason)
    assert [each.item_id for each in newest_events(database, "ann", 10)] == ["m1"]


def test_other_content_within_one_call_is_rejected(database: Engine) -> None:
    changed = replace(EVENT, item_id="m9")
    assert states(database, EVENT, changed, EVENT) == ["stored", "rejected", "duplicate"]


def test_a_label_that_a_new_release_derives_otherwise_is_no_other_content(
    database: Engine,
) -> None:
    append(database, [replace(EVENT, is_label_derived=True)])
    assert states(database, replace(EVENT, label=0, is_label_derived=True)) == ["duplicate"]


def test_no_events_are_no_statuses(database: Engine) -> None:
    assert append(database, []) == []


def test_more_events_than_one_statement_holds(database: Engine) -> None:
    events = [replace(EVENT, event_id=f"e{n}") for n in range(1234)]
    assert set(states(database, *events)) == {"stored"}
    assert set(states(database, *events)) == {"duplicate"}
    assert count_events(database) == 1234


ids = st.sampled_from(["a", "b", "c", "d"])
any_event = st.builds(
    Event, ids, st.sampled_from(["u", "v"]), st.sampled_from(["x", "y"]), st.integers(0, 2),
    st.none() | st.sampled_from([1.0, 2.5]), st.integers(0, 1),
)


@settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(batches=st.lists(st.lists(any_event, max_size=6), max_size=4))
def test_append_equals_a_dictionary_that_keeps_the_first(
    database: Engine, batches: list[list[Event]]
) -> None:
    with writing(database).begin() as connection:
        connection.execute(delete(EVENTS))
    kept: dict[str, Event] = {}
    for batch in batches:
        expected = []
        for event in batch:
            if event.event_id not in kept:
                kept[event.event_id] = event
                expected.append("stored")
            else:
                same = kept[event.event_id] == event
                expected.append("duplicate" if same else "rejected")
        assert states(database, *batch) == expected
    assert count_events(database) == len(kept)


def test_writers_at_once_store_each_event_once(database: Engine) -> None:
    events = [replace(EVENT, event_id=f"e{n:03}", item_id=f"m{n}") for n in range(200)]
    orders = [events, events[::-1], events[100:] + events[:100], events[50:150]]

    def write(order: list[Event]) -> list[str]:
        return [
            state for start in range(0, len(order), 20)
            for state in states(database, *order[start : start + 20])
        ]

    with ThreadPoolExecutor(4) as pool:
        answers = [state for each in pool.map(write, orders) for state in each]
    assert answers.count("stored") == 200
    assert answers.count("duplicate") == 500
    assert count_events(database) == 200


def test_an_event_is_received_when_its_turn_to_be_stored_has_come(
    database: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one that waited for a lock would be committed long after its receipt."""
    moment, other = [1000.0], open_database(database_url)
    monkeypatch.setattr("engine.state.events.time.time", lambda: moment[0])
    with ThreadPoolExecutor(1) as pool:
        with writing(database).begin() as connection:
            lock_to_delete(connection)
            appended = pool.submit(append, other, [EVENT])
            assert wait([appended], timeout=0.5).not_done
            moment[0] = 5000.0
        assert appended.result(30)[0].state is EventState.STORED
    assert count_received(database, 4999, 5000) == 1
    other.dispose()


WRITER = """
import sys
from engine.state.database import open_database
from engine.state.events import Event, append
engine = open_database(sys.argv[1])
for number in range(100_000):
    [status] = append(engine, [Event(f"{sys.argv[2]}-{number}", "u", "i", number, None, 1)])
    assert status.state == "stored"
    print(number, flush=True)
"""


def start_writer(database_url: str, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, database_url, name], stdout=subprocess.PIPE, text=True
    )


def test_what_was_acknowledged_survives_kill_nine_of_two_writers(database_url: str) -> None:
    writers = [start_writer(database_url, name) for name in ("a", "b")]
    acknowledged = {}
    for name, writer in zip("ab", writers, strict=True):
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(30)]
        os.kill(writer.pid, signal.SIGKILL)
        lines += writer.stdout.read().splitlines()
        writer.wait(timeout=30)
        writer.stdout.close()
        acknowledged[name] = max(int(line) for line in lines if line.strip())
    engine = open_database(database_url)
    events = newest_events(engine, "u", 10**6)
    expected = sum(last + 1 for last in acknowledged.values())
    assert len(events) >= expected >= 60
    assert len(events) <= expected + 2          # at most one in flight each
    again = append(engine, [
        Event(f"{name}-{last}", "u", "i", last, None, 1) for name, last in acknowledged.items()
    ])
    assert {status.state for status in again} == {EventState.DUPLICATE}
    engine.dispose()
