"""Which events followed which answers, on both databases."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete

from engine.errors import ConfigError
from engine.state import outcomes
from engine.state.database import EVENTS, IMPRESSIONS, open_database, open_existing, writing
from engine.state.events import Event, append
from engine.state.histories import SEED_PREFIX, PastEvent, seed
from engine.state.impressions import Impression, ShownItem, record
from engine.state.outcomes import AnswerCount, AnswerPeriod, count_answers, read_requests
from engine.types import AnsweredRequest, AnswerList, AnswerMode, Outcome

PERIOD = AnswerPeriod(1000, 2000, 100)
NOTHING = Outcome([], 0)


def impression(
    request_id: str, asked_s: int, release_id: str = "a", user_id: str | None = "ann",
    shadow_of: str | None = None, items: Sequence[str] = ("m1", "m2"),
) -> Impression:
    shown = [ShownItem(item, 1.5, 0.5) for item in items]
    return Impression(request_id, user_id, release_id, "crm", asked_s, shown, shadow_of)


def event(
    event_id: str, timestamp_s: int, item_id: str = "m1", label: int = 1,
    request_id: str | None = None, user_id: str = "ann",
) -> Event:
    return Event(event_id, user_id, item_id, timestamp_s, None, label, request_id)


def request(
    outcome: Outcome | None, *release_ids: str, user_id: str = "ann",
    items: Sequence[str] = ("m1", "m2"),
) -> AnsweredRequest:
    """Return a request; a release with a star answered in the shadow."""
    answers = [AnswerList(each[0], AnswerMode.CRM, list(items), each.endswith("*"))
               for each in release_ids or ("a",)]
    return AnsweredRequest(user_id, answers, outcome)


def read(
    database: Engine, impressions: Sequence[Impression], events: Sequence[Event] = (),
    releases: Sequence[str] = ("a", "b"), period: AnswerPeriod = PERIOD,
) -> list[AnsweredRequest]:
    """Return the requests, one user's from the newest to the oldest."""
    record(database, impressions)
    append(database, events)
    return list(read_requests(database, releases, period))


def test_an_event_without_a_name_follows_the_last_answer_before_it(database: Engine) -> None:
    impressions = [impression("r1", 1000), impression("r2", 1050, "b", items=["m3"])]
    events = [event("e1", 1000), event("e2", 1049, "m2", 0), event("e3", 1050, "m3"),
              event("e4", 1060, "m3"), event("e5", 999), event("e6", 1151)]
    assert read(database, impressions, events) == [
        request(Outcome(["m3", "m3"], 0), "b", items=["m3"]), request(Outcome(["m1"], 1)),
    ]


def test_the_horizon_ends_with_its_last_second(database: Engine) -> None:
    events = [event("e1", 1100), event("e2", 1101), event("e3", 1100, "m2", 1, "r1"),
              event("e4", 1101, "m2", 1, "r1")]
    assert read(database, [impression("r1", 1000)], events) == [request(Outcome(["m2", "m1"], 0))]


def test_a_named_event_follows_the_answer_that_it_names_and_no_other(database: Engine) -> None:
    impressions = [impression("r1", 1000), impression("r2", 1010, "b"),
                   impression("r3", 1010, user_id="bob"), impression("r4", 1020, "b", None, None)]
    events = [
        event("e1", 1030, "m1", 1, "r1"), event("e2", 1030, "m2", 0, "r2"),
        event("e3", 999, "m1", 1, "r1"),                # before the answer
        event("e4", 1030, "m1", 1, "r3"),               # bob's
        event("e5", 1030, "m1", 1, "r4"),               # a guest's
        event("e6", 1030, "m1", 1, "forgotten"), event("e7", 1030, "m1", 1, ""),
    ]
    assert read(database, impressions, events) == [
        request(Outcome([], 1), "b"), request(Outcome(["m1"], 0)), request(NOTHING, user_id="bob"),
    ]


def test_seeded_events_follow_nothing(database: Engine) -> None:
    seed(database, [("ann", [PastEvent("m1", 1001, None, 1)])])
    other = event(SEED_PREFIX.upper() + "1", 1002, "m2")        # a client's
    assert read(database, [impression("r1", 1000)], [other]) == [request(Outcome(["m2"], 0))]


def test_a_shadow_shares_the_outcome_of_the_answer_beside_it(database: Engine) -> None:
    impressions = [
        impression("r1", 1000), impression("s1", 1000, "b", shadow_of="r1"),
        impression("r2", 1010, "c"), impression("z2", 1012, "b", shadow_of="r2"),
        impression("r3", 1030, "b"), impression("s3", 1030, "c", shadow_of="r3"),
    ]
    events = [event("e1", 1005), event("e2", 1015, "m2"),
              event("e3", 1016, "m1", 1, "s1")]         # nobody saw it
    assert read(database, impressions, events) == [
        request(NOTHING, "b"), request(Outcome(["m2"], 0), "b*"),
        request(Outcome(["m1"], 0), "a", "b*"),
    ]


def test_a_shadow_without_the_answer_given_has_no_outcome(database: Engine) -> None:
    impressions = [
        impression("s1", 1000, "b", shadow_of="forgotten"),
        impression("s2", 1000, "b", shadow_of="r2"), impression("r2", 1000, user_id="bob"),
        impression("s3", 1000, "b", shadow_of="s1"),
        impression("s4", 2000, "b", shadow_of="forgotten"),     # after the period
        impression("s5", 1000, "c", shadow_of="forgotten"),     # not asked for
    ]
    found = read(database, impressions, [event("e1", 1001)])
    assert found == [*[request(None, "b*")] * 3, request(NOTHING, user_id="bob")]


def test_of_one_second_the_greatest_request_id_is_the_last(database: Engine) -> None:
    impressions = [impression("r2", 1000), impression("r10", 1000, "b")]
    assert read(database, impressions, [event("e1", 1000)]) == [
        request(Outcome(["m1"], 0)), request(NOTHING, "b"),
    ]


def test_answers_outside_the_period_count_nothing_but_take_what_follows_them(
    database: Engine,
) -> None:
    impressions = [impression("r1", 999), impression("r2", 1000), impression("r3", 1999),
                   impression("r4", 2000)]
    events = [event("e1", 1000), event("e2", 2000), event("e3", 2050, "m2", 1, "r3"),
              event("e4", 2099, "m1", 1, "r3"), event("e5", 1001, "m1", 1, "r1")]
    assert read(database, impressions, events) == [
        request(Outcome(["m2", "m1"], 0)), request(Outcome(["m1"], 0)),
    ]
    whole = AnswerPeriod(None, 1000, 100)
    assert list(read_requests(database, ["a"], whole)) == [request(Outcome(["m1"], 0))]


def test_guests_answers_are_counted_and_left_out(database: Engine) -> None:
    impressions = [impression("r1", 1000), impression("r2", 1999, user_id=None),
                   impression("r3", 2000), impression("r4", 1500, "c", None),
                   impression("s1", 1500, "b", None, "r4")]
    assert read(database, impressions, [event("e1", 1001)]) == [request(Outcome(["m1"], 0))]
    assert count_answers(database, PERIOD) == {
        "a": AnswerCount(2, 1), "b": AnswerCount(1, 1), "c": AnswerCount(1, 1),
    }


def test_users_come_one_after_another_however_their_ids_are_written(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "ROWS", 2)        # several reads for each
    users = ["Z", "a", "\u00e4", "b'\"", "\uffee", "\U0001f600", "10", "9"]
    impressions = [impression(f"{user}-{n}", 1000 + n, "ab"[n % 2], user) for n in range(3)
                   for user in users]
    events = [event(f"{user}-{n}", 1000 + n, user, user_id=user) for n in range(3)
              for user in [*users, "nobody"]]
    found = read(database, impressions, events)
    assert [each.user_id for each in found] == [user for user in sorted(users) for _ in range(3)]
    assert all(each.outcome == Outcome([each.user_id], 0) for each in found)


def test_who_writes_does_not_wait_and_who_reads_sees_one_state(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "ROWS", 1)
    record(database, [impression(f"r{n}", 1000, user_id=f"u{n}") for n in range(3)])
    requests = read_requests(database, ["a"], PERIOD)
    first = next(requests)
    record(database, [impression("r9", 1000, user_id="u9")])
    append(database, [event("e1", 1001, user_id="u2")])
    assert [first, *requests] == [request(NOTHING, user_id=f"u{n}") for n in range(3)]


def expected(
    impressions: Sequence[Impression], events: Sequence[Event], releases: Sequence[str],
    period: AnswerPeriod,
) -> list[AnsweredRequest]:
    """Return the requests by looking at every answer for every event."""
    given = {each.request_id: each for each in impressions
             if each.shadow_of is None and each.user_id is not None}
    followed: dict[str, list[Event]] = {request_id: [] for request_id in given}
    for each in events:
        own = [one for one in given.values()
               if one.user_id == each.user_id and one.asked_s <= each.timestamp_s]
        if each.request_id is not None:
            own = [one for one in own if one.request_id == each.request_id]
        if own:
            last = max(own, key=lambda one: (one.asked_s, one.request_id))
            if each.timestamp_s - last.asked_s <= period.horizon_s:
                followed[last.request_id].append(each)
    requests: dict[str, list[Impression]] = {}
    orphans = []
    for one in impressions:
        if one.release_id not in releases or one.user_id is None:
            continue
        first = given.get(one.shadow_of or one.request_id)
        if first is None or first.user_id != one.user_id:
            if one.asked_s in period:
                orphans.append(AnsweredRequest(one.user_id, [listed(one)], None))
        elif first.asked_s in period:
            requests.setdefault(first.request_id, []).append(one)
    found = []
    for request_id, answers in requests.items():
        liked = sorted(each.item_id for each in followed[request_id] if each.label)
        outcome = Outcome(liked, len(followed[request_id]) - len(liked))
        user_id = given[request_id].user_id
        assert user_id is not None
        found.append(AnsweredRequest(user_id, [listed(one) for one in answers], outcome))
    return found + orphans


def listed(one: Impression) -> AnswerList:
    items = [item.item_id for item in one.items]
    return AnswerList(one.release_id, AnswerMode(one.mode), items, one.shadow_of is not None)


def comparable(requests: Sequence[AnsweredRequest]) -> list[str]:
    """Return requests such that neither their order nor that within them matters."""
    return sorted(repr((
        each.user_id, sorted(map(repr, each.answers)),
        each.outcome and (sorted(each.outcome.liked), each.outcome.num_disliked),
    )) for each in requests)


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[Impression], list[Event]]:
    """Return answers and events, close together in time; a shadow has the time of its answer."""
    users, times = st.sampled_from(["ann", "bob"]), st.integers(0, 12)
    impressions = [
        impression(f"r{n}", draw(times), draw(st.sampled_from("abc")),
                   draw(st.one_of(users, st.none())), items=draw(st.sampled_from(["", "x", "yx"])))
        for n in range(draw(st.integers(0, 6)))
    ]
    for n in range(draw(st.integers(0, 4))):
        beside = draw(st.sampled_from([*impressions, impression("forgotten", draw(times))]))
        impressions.append(replace(
            beside, request_id=draw(st.sampled_from("qs")) + str(n), shadow_of=beside.request_id,
            release_id=draw(st.sampled_from("abc")),
        ))
    names = st.sampled_from([None, None, "unknown", *(each.request_id for each in impressions)])
    events = [
        event(f"e{n}", draw(st.integers(0, 18)), draw(st.sampled_from("xyz")),
              draw(st.integers(0, 1)), draw(names), draw(users))
        for n in range(draw(st.integers(0, 8)))
    ]
    return draw(st.permutations(impressions)), events


def test_the_stream_equals_looking_at_everything() -> None:
    with TemporaryDirectory() as folder:
        database = open_database(f"sqlite:///{folder}/events.db")

        @settings(max_examples=150)
        @given(logs(), st.one_of(st.none(), st.integers(0, 6)), st.integers(1, 13),
               st.integers(0, 6))
        def holds(
            log: tuple[list[Impression], list[Event]], start_s: int | None, end_s: int,
            horizon_s: int,
        ) -> None:
            period = AnswerPeriod(start_s, end_s, horizon_s)
            with writing(database).begin() as connection:
                for table in (IMPRESSIONS, EVENTS):
                    connection.execute(delete(table))
            found = read(database, *log, releases=["a", "b"], period=period)
            assert comparable(found) == comparable(expected(*log, ["a", "b"], period))

        holds()
        database.dispose()


def test_no_database_is_made_where_none_is(database_url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no service has run on database"):
        open_existing(database_url)
    assert not (tmp_path / "state").exists()
    with pytest.raises(ConfigError, match="no service has run"):       # nor were tables
        open_existing(database_url)
    open_database(database_url).dispose()
    engine = open_existing(database_url)
    assert count_answers(engine, PERIOD) == {}
    engine.dispose()
