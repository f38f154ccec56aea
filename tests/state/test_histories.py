from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, insert, text

from engine.state.database import EVENTS, writing
from engine.state.deletions import delete_user
from engine.state.events import Event, append
from engine.state.histories import (
    COMMIT_MARGIN_S,
    PastEvent,
    all_events,
    count_events,
    count_received,
    newest_bound,
    newest_events,
    received_events,
    seed,
    some_user_ids,
    user_ids,
)


def test_newest_events_come_oldest_first_and_ties_by_item_id(database: Engine) -> None:
    append(database, [
        Event("1", "ann", "b", 20, 3.0, 0), Event("2", "ann", "a", 20, None, 1),
        Event("3", "ann", "z", 10, 5.0, 1), Event("4", "ann", "B", 20, 1.0, 0),
        Event("5", "bob", "q", 30, 2.0, 0),
    ])
    assert newest_events(database, "ann", 10) == [
        PastEvent("z", 10, 5.0, 1), PastEvent("B", 20, 1.0, 0), PastEvent("a", 20, None, 1),
        PastEvent("b", 20, 3.0, 0),
    ]
    assert [event.item_id for event in newest_events(database, "ann", 2)] == ["a", "b"]
    assert newest_events(database, "nobody", 2) == []


def test_a_late_event_stands_at_its_time(database: Engine) -> None:
    append(database, [Event("1", "ann", "new", 20, None, 1)])
    append(database, [Event("2", "ann", "late", 10, None, 1)])
    assert [event.item_id for event in newest_events(database, "ann", 9)] == ["late", "new"]


def test_user_ids_come_once_each_by_code_point(database: Engine) -> None:
    assert list(user_ids(database)) == []
    users = ["b", "ä", "B", "b", "10", "9"]
    append(database, [Event(str(n), user, "a", n, None, 1) for n, user in enumerate(users)])
    assert list(user_ids(database)) == ["10", "9", "B", "b", "ä"]


@pytest.mark.parametrize(("prefix", "limit", "found"), [
    ("", 3, ["", "b", "b%"]), ("b", 9, ["b", "b%", "b_x", "ba", "b\U0001f600"]),
    ("b", 2, ["b", "b%"]), ("b%", 9, ["b%"]), ("b_", 9, ["b_x"]), ("B", 9, []), ("ba ", 9, []),
    ("\u00e4", 9, ["\u00e4"]),
    ("' OR 1=1; --", 9, []), ("\U0010ffff", 9, []),
])
def test_users_are_found_by_the_beginning_of_their_id(
    database: Engine, prefix: str, limit: int, found: list[str]
) -> None:
    users = ["b", "\u00e4", "b_x", "b%", "", "b\U0001f600", "ba", "c"]
    append(database, [Event(f"{user}{n}", user, "a", n, None, 1) for user in users for n in (1, 2)])
    assert some_user_ids(database, prefix, limit) == found


def test_a_deleted_user_is_not_found_before_coming_back(database: Engine) -> None:
    append(database, [Event(user, user, "a", 1, None, 1) for user in ("ann", "anna")])
    deletion = delete_user(database, "ann")
    assert some_user_ids(database, "ann", 5) == ["anna"]
    append(database, [Event("new", "ann", "a", deletion.deleted_s + 1, None, 1)])
    assert some_user_ids(database, "ann", 5) == ["ann", "anna"]


def test_no_user_is_found_where_nobody_is_stored(database: Engine) -> None:
    assert some_user_ids(database, "", 5) == []


def test_a_user_id_is_exact(database: Engine) -> None:
    append(database, [Event("1", "ann", "a", 20, None, 1)])
    assert newest_events(database, "ann", 1)
    assert not newest_events(database, "Ann", 1)
    assert not newest_events(database, "an_", 1)       # never a pattern


HISTORIES = {
    "ann": [PastEvent("a", 1, 4.0, 1), PastEvent("b", 2, 2.0, 0)],
    "bob": [PastEvent("a", 1, 4.0, 1), PastEvent("a", 1, 4.0, 1)],
}


def test_seeding_twice_stores_each_event_once(database: Engine) -> None:
    assert seed(database, HISTORIES.items()) == 4
    assert seed(database, HISTORIES.items()) == 4
    assert count_events(database) == 4
    assert {user: newest_events(database, user, 9) for user in HISTORIES} == HISTORIES


def test_seeding_a_longer_history_adds_what_is_new(database: Engine) -> None:
    seed(database, HISTORIES.items())
    longer = [PastEvent("early", 0, 3.0, 0), *HISTORIES["ann"], PastEvent("c", 3, 5.0, 1)]
    seed(database, [("ann", longer)])
    assert newest_events(database, "ann", 9) == longer


def test_seeding_again_takes_the_labels_of_the_last_import(database: Engine) -> None:
    seed(database, HISTORIES.items())
    relabelled = [PastEvent("a", 1, 4.0, 0), PastEvent("b", 2, 2.0, 1)]
    seed(database, [("ann", relabelled)])
    assert newest_events(database, "ann", 9) == relabelled
    assert newest_events(database, "bob", 9) == HISTORIES["bob"]


def test_seeding_keeps_what_clients_sent(database: Engine) -> None:
    append(database, [Event("1", "ann", "c", 3, None, 1)])
    seed(database, HISTORIES.items())
    assert [event.item_id for event in newest_events(database, "ann", 9)] == ["a", "b", "c"]


def test_a_seed_of_many_events(database: Engine) -> None:
    history = [PastEvent(str(n % 7), n, None, 1) for n in range(25_000)]
    assert seed(database, [("ann", history)]) == 25_000
    assert newest_events(database, "ann", 1000) == history[-1000:]


text_ids = st.text(
    st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1, max_size=3
)


@settings(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    events=st.lists(st.tuples(text_ids, st.integers(0, 3)), max_size=12, unique=True),
    limit=st.integers(1, 12),
)
def test_newest_events_equal_a_sort_in_memory(
    database: Engine, events: list[tuple[str, int]], limit: int
) -> None:
    with writing(database).begin() as connection:
        connection.execute(delete(EVENTS))
    past = [PastEvent(item, time, None, 1) for item, time in events]
    append(database, [
        replace(Event("", "u", each.item_id, each.timestamp_s, None, 1), event_id=str(number))
        for number, each in enumerate(past)
    ])
    expected = sorted(past, key=lambda each: (each.timestamp_s, each.item_id))[-limit:]
    assert newest_events(database, "u", limit) == expected


def test_all_events_come_by_user_and_time(database: Engine) -> None:
    assert list(all_events(database)) == []
    append(database, [
        Event("1", "b", "y", 20, 3.0, 0), Event("2", "ä", "x", 5, None, 1),
        Event("3", "b", "x", 10, 5.0, 1), Event("4", "B", "x", 30, 1.0, 0),
        Event("5", "b", "B", 20, 2.0, 0),
    ])
    assert list(all_events(database)) == [
        ("B", PastEvent("x", 30, 1.0, 0)), ("b", PastEvent("x", 10, 5.0, 1)),
        ("b", PastEvent("B", 20, 2.0, 0)), ("b", PastEvent("y", 20, 3.0, 0)),
        ("ä", PastEvent("x", 5, None, 1)),
    ]


def test_what_users_reported_is_not_seeded_once_more(database: Engine) -> None:
    """A training learned from stored events; its histories are seeded."""
    append(database, [Event("own", "ann", "x", 10, None, 1)])
    histories = [
        ("ann", [PastEvent(item, time_s, 4.0, 1)
                 for item, time_s in (("x", 10), ("y", 10), ("x", 11))]),
        ("bob", [PastEvent("x", 10, 4.0, 1)]),
    ]
    for _ in range(2):
        seed(database, histories)
        assert [(user, event.item_id, event.timestamp_s, event.rating)
                for user, event in all_events(database)] == [
            ("ann", "x", 10, None), ("ann", "y", 10, 4.0), ("ann", "x", 11, 4.0),
            ("bob", "x", 10, 4.0),
        ]


def test_days_have_every_event_once_by_its_receipt_and_in_order(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed(database, [("ann", [PastEvent("old", 5, 4.0, 1)])])
    for received_s in (100, 101, 102, 103):
        monkeypatch.setattr("engine.state.events.time.time", lambda now_s=received_s: now_s + 0.9)
        append(database, [
            Event(f"{user}{received_s}", user, "m1", -received_s, None, 1) for user in ("b", "a")
        ])
    days = [list(received_events(database, *bounds)) for bounds in ((0, 100), (100, 102))]
    assert [[(user, -event.timestamp_s) for user, event in day] for day in days] == [
        [("a", 100), ("b", 100)], [("a", 102), ("a", 101), ("b", 102), ("b", 101)],
    ]
    assert [count_received(database, *bounds) for bounds in ((0, 100), (100, 102), (0, 103))] == [
        2, 4, 8,
    ]
    assert list(received_events(database, 103, 103)) == []


def test_a_night_leaves_the_newest_events_to_the_next() -> None:
    assert newest_bound(1000.9) == 1000 - COMMIT_MARGIN_S


def test_a_day_is_found_by_an_index(database: Engine) -> None:
    """Of both orders that an index could save, by user or by receipt, the latter is the short one.
    """
    rows = [
        {"event_id": str(number), "user_id": f"u{number % 50}", "item_id": "m1",
         "timestamp_s": number, "label": 1, "received_s": number}
        for number in range(20_000)
    ]
    with writing(database).begin() as connection:
        connection.execute(insert(EVENTS), rows)
        if database.dialect.name == "postgresql":
            connection.execute(text("ANALYZE events"))
        explain = "EXPLAIN QUERY PLAN" if database.dialect.name == "sqlite" else "EXPLAIN"
        plan = connection.execute(text(
            f"{explain} SELECT * FROM events WHERE received_s > 19000 AND received_s <= 19100 "
            "ORDER BY user_id, timestamp_s, item_id, event_id"
        ))
        assert "events_by_receipt" in str(plan.all())
