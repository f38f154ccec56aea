from dataclasses import replace

import pytest
from sqlalchemy import Engine

from engine.state.deletions import delete_user
from engine.state.events import Event, append
from engine.state.impressions import (
    Impression,
    ShownItem,
    forget_impressions,
    read_impressions,
    record,
)

ITEMS = [ShownItem("m2", 1.25, 0.5, -0.75), ShownItem("m1", 0.1, 0.1), ShownItem("ä'\"", -2.0)]
ANSWER = Impression("r1", "ann", "release-1", "full", 1000, ITEMS)


def test_an_answer_is_read_as_it_was_given(database: Engine) -> None:
    guest = replace(ANSWER, request_id="r2", user_id=None, mode="popular", items=[])
    shadow = replace(ANSWER, request_id="r3", release_id="release-2", shadow_of="r1")
    assert record(database, [ANSWER, guest, shadow]) == 3
    assert read_impressions(database, ["r1", "r2", "r3", "r1", "never"]) == {
        "r1": ANSWER, "r2": guest, "r3": shadow,
    }
    assert record(database, []) == 0


def test_an_answer_is_stored_once(database: Engine) -> None:
    record(database, [ANSWER])
    record(database, [replace(ANSWER, mode="crm")])
    assert read_impressions(database, ["r1"]) == {"r1": ANSWER}


def test_what_is_too_old_goes(database: Engine) -> None:
    record(database, [replace(ANSWER, request_id=str(time_s), asked_s=time_s)
                      for time_s in (998, 999, 1000)])
    assert forget_impressions(database, before_s=1000) == 2
    assert list(read_impressions(database, ["998", "999", "1000"])) == ["1000"]


def test_answers_to_a_deleted_user_go_and_late_ones_are_not_stored(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.state.deletions.time.time", lambda: 2000)
    bob, guest = (replace(ANSWER, request_id=user or "guest", user_id=user)
                  for user in ("bob", None))
    record(database, [ANSWER, bob, guest])
    delete_user(database, "ann")
    late, later = (replace(ANSWER, request_id=str(time_s), asked_s=time_s)
                   for time_s in (2000, 2001))
    assert record(database, [late, later]) == 1
    assert set(read_impressions(database, ["r1", "bob", "guest", "2000", "2001"])) == {
        "bob", "guest", "2001",
    }


def test_an_event_names_the_answer_that_it_followed(database: Engine) -> None:
    event = Event("e1", "ann", "m2", 1001, 5.0, 1, "r1")
    states = [append(database, [each])[0] for each in (event, event, replace(event, request_id=""))]
    assert [each.state.value for each in states] == ["stored", "duplicate", "rejected"]
    assert "request_id" in str(states[2].reason)
