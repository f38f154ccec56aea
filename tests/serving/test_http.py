import json
import time
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from engine.state.database import open_database
from engine.state.impressions import read_impressions
from tests.serving.conftest import Service

pytestmark = pytest.mark.ray


def user(service: Service, place: int = 0) -> str:
    return sorted(service.world.histories)[place]


def test_a_user_gets_ranked_items_with_every_score(service: Service) -> None:
    answer = service.recommend(user_id=user(service), k=10)
    assert answer["release_id"] == service.live_id
    assert answer["mode"] == "full"
    items = answer["items"]
    assert len({item["item_id"] for item in items}) == 10
    assert all(item["title"] == f"Title {item['item_id']}" for item in items)
    assert [item["llm_score"] is not None for item in items] == [True] * 6 + [False] * 4
    head = [item["score"] for item in items[:6]]
    assert head == sorted(head, reverse=True)
    tail = [item["crm_score"] for item in items[6:]]
    assert tail == sorted(tail, reverse=True)
    assert {"history", "candidates", "crm", "prompts", "llm", "total"} <= answer["stage_ms"].keys()


def test_the_answer_names_the_history_it_used(service: Service) -> None:
    history = service.world.histories[user(service, 1)]
    summary = service.recommend(user_id=user(service, 1))["history"]
    assert summary["length"] == len(history)
    newest = service.world.catalogue.item_ids[history.items[-1]]
    assert summary["newest"][0]["item_id"] == newest
    assert summary["newest"][0]["title"] == f"Title {newest}"


def test_the_same_request_has_the_same_answer(service: Service) -> None:
    first, second = (service.recommend(user_id=user(service, 2), k=20) for _ in range(2))
    assert first["items"] == second["items"]


def test_five_users_have_five_gate_mixes(service: Service) -> None:
    mixes = []
    for place in range(5):
        explanation = service.recommend(user_id=user(service, place), explain=True)["explanation"]
        assert sum(explanation["gate_weights"]) == pytest.approx(1, abs=1e-4)
        assert explanation["gates"] is None
        mixes.append(tuple(explanation["gate_weights"]))
    assert len(set(mixes)) == 5


def test_an_explanation_lists_gates_on_demand_and_past_interactions(service: Service) -> None:
    answer = service.recommend(user_id=user(service), explain_gates=True)
    explanation = answer["explanation"]
    assert len(explanation["gates"]) == 2 * 2           # layers x matrices
    mean = [sum(column) / 4 for column in zip(*explanation["gates"], strict=True)]
    assert mean == pytest.approx(explanation["gate_weights"], abs=1e-5)
    past = explanation["past"]
    weights = [event["attention"] for event in past]
    assert weights == sorted(weights, reverse=True)
    assert any(event["is_in_prompt"] for event in past)
    assert sum(event["is_in_prompt"] for event in past) <= 4
    assert "explanation" in service.recommend(user_id=user(service))
    assert service.recommend(user_id=user(service))["explanation"] is None


def test_named_candidates_are_ranked_even_if_seen(service: Service) -> None:
    history = service.world.histories[user(service)]
    seen = [service.world.catalogue.item_ids[item] for item in sorted(set(history.items))[:3]]
    answer = service.recommend(user_id=user(service), candidates=seen)
    assert sorted(item["item_id"] for item in answer["items"]) == sorted(seen)
    filtered = service.recommend(
        user_id=user(service), candidates=seen, filters={"exclude_seen": True}
    )
    assert filtered["items"] == []


def test_what_was_seen_is_not_found_again_unless_asked_for(service: Service) -> None:
    name = user(service)
    history = service.world.histories[name]
    seen = {service.world.catalogue.item_ids[item] for item in history.items}
    found = service.recommend(user_id=name, k=20)
    assert not seen & {item["item_id"] for item in found["items"]}
    again = service.recommend(user_id=name, k=20, filters={"exclude_seen": False})
    assert len(again["items"]) == 20


def test_filters_hold_for_every_item(service: Service) -> None:
    catalogue = service.world.catalogue
    first = service.recommend(user_id=user(service), k=3)["items"]
    answer = service.recommend(user_id=user(service), k=20, filters={
        "fields": {"genres": ["Comedy", "Drama"], "year": ["1985", "1986", "1987", "1990"]},
        "exclude_items": [first[0]["item_id"], "gone from the catalogue"],
    })
    assert answer["items"]
    for item in answer["items"]:
        index = catalogue.index_of(item["item_id"])
        assert {"Comedy", "Drama"} & set(catalogue.fields["genres"][index])
        assert catalogue.fields["year"][index][0] in {"1985", "1986", "1987", "1990"}
        assert item["item_id"] != first[0]["item_id"]


def test_scoring_gives_every_score_of_every_item(service: Service) -> None:
    ids = service.world.catalogue.item_ids[1:29]
    answer = service.post("/v1/score", {"user_id": user(service), "candidates": ids}).json()
    assert sorted(item["item_id"] for item in answer["items"]) == sorted(ids)
    for item in answer["items"]:
        assert item["llm_score"] is not None
        assert item["crm_score"] is not None
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)


def test_recommending_and_scoring_agree(service: Service) -> None:
    found = service.recommend(user_id=user(service, 3), k=6)["items"]
    scored = service.post("/v1/score", {
        "user_id": user(service, 3), "candidates": [item["item_id"] for item in found],
    }).json()["items"]
    assert [item["item_id"] for item in scored] == [item["item_id"] for item in found]
    assert [item["score"] for item in scored] == pytest.approx(
        [item["score"] for item in found], abs=1e-4
    )


def test_requests_at_once_get_their_own_answers(service: Service) -> None:
    import asyncio

    names = sorted(service.world.histories)[:8]
    alone = {name: service.recommend(user_id=name, explain=True) for name in names}

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=service.url, timeout=60, trust_env=False) as client:
            return await asyncio.gather(*(
                client.post("/v1/recommend", json={"user_id": name, "explain": True})
                for name in names * 2
            ))

    for name, response in zip(names * 2, asyncio.run(ask()), strict=True):
        answer = response.json()
        expected = alone[name]
        assert answer["explanation"]["gate_weights"] == pytest.approx(
            expected["explanation"]["gate_weights"], abs=1e-4
        )
        scores = {item["item_id"]: item["score"] for item in answer["items"]}
        assert scores == pytest.approx(
            {item["item_id"]: item["score"] for item in expected["items"]}, abs=1e-3
        )


def test_a_guest_brings_a_history(service: Service) -> None:
    ids = service.world.catalogue.item_ids
    history = [{"item_id": ids[1], "rating": 5.0}, {"item_id": ids[2], "rating": 1},
               {"item_id": ids[3]}]
    answer = service.recommend(history=history, explain=True)
    assert answer["mode"] == "full"
    assert answer["history"]["length"] == 3
    newest = answer["history"]["newest"]
    assert [event["item_id"] for event in newest] == [ids[3], ids[2], ids[1]]
    assert [event["label"] for event in newest] == [1, 0, 1]
    other = service.recommend(history=history[:1], explain=True)
    assert other["explanation"]["gate_weights"] != answer["explanation"]["gate_weights"]


@pytest.mark.parametrize("asker", [{"user_id": "nobody"}, {"history": []}])
def test_who_is_unknown_gets_popular_items(service: Service, asker: dict[str, Any]) -> None:
    answer = service.recommend(**asker, k=5)
    assert answer["mode"] == "popular"
    top = service.world.popularity().top[:5]
    assert [item["item_id"] for item in answer["items"]] == [
        service.world.catalogue.item_ids[item] for item in top
    ]
    assert all(item["crm_score"] is None for item in answer["items"])
    named = service.recommend(**asker, candidates=service.world.catalogue.item_ids[1:4])
    assert named["mode"] == "popular"
    assert len(named["items"]) == 3


def event(service: Service, name: str, number: int, **change: Any) -> dict[str, Any]:
    return {
        "event_id": f"{name}-{number}", "user_id": name,
        "item_id": service.world.catalogue.item_ids[1 + number], "timestamp_s": 10**9 + number,
        "rating": 5.0, **change,
    }


def test_three_events_change_the_next_answer(service: Service) -> None:
    name = user(service, 5)
    before = service.recommend(user_id=name, explain=True)
    events = [event(service, name, number) for number in range(3)]
    answer = service.post("/v1/events", {"events": events})
    assert answer.status_code == 200
    assert [each["status"] for each in answer.json()["events"]] == ["stored"] * 3
    after = service.recommend(user_id=name, explain=True)
    assert after["history"]["length"] == before["history"]["length"] + 3
    assert [each["item_id"] for each in after["history"]["newest"][:3]] == [
        each["item_id"] for each in reversed(events)
    ]
    assert after["explanation"]["gate_weights"] != before["explanation"]["gate_weights"]
    again = service.post("/v1/events", {"events": events}).json()
    assert [each["status"] for each in again["events"]] == ["duplicate"] * 3
    unchanged = service.recommend(user_id=name, explain=True)
    assert unchanged["history"] == after["history"]
    assert unchanged["items"] == after["items"]


def test_a_new_user_is_personalised_after_the_first_event(service: Service) -> None:
    assert service.recommend(user_id="newcomer")["mode"] == "popular"
    service.post("/v1/events", {"events": [event(service, "newcomer", 1)]})
    answer = service.recommend(user_id="newcomer")
    assert answer["mode"] == "full"
    assert answer["history"]["length"] == 1


def test_each_event_has_its_own_status(service: Service) -> None:
    name = "statuses"
    events = [
        event(service, name, 1), event(service, name, 2, item_id="no such item"),
        event(service, name, 1), event(service, name, 1, timestamp_s=5),
        event(service, name, 3, rating=9.5), event(service, name, 4, rating=None),
        event(service, name, 5, rating=None, label=0), event(service, name, 6, event_id="seed:1"),
        event(service, name, 7, timestamp_s=int(time.time()) + 3600),
    ]
    answer = service.post("/v1/events", {"events": events}).json()["events"]
    assert [each["index"] for each in answer] == list(range(9))
    assert [each["status"] for each in answer] == [
        "stored", "rejected", "duplicate", "rejected", "rejected", "rejected", "stored", "rejected",
        "rejected",
    ]
    reasons = [each["reason"] for each in answer]
    assert "'no such item'" in reasons[1]
    assert "timestamp_s" in reasons[3]
    assert "rating" in reasons[4]
    assert "rating" in reasons[5]
    assert "in the future" in reasons[8]
    history = service.client.get(f"/v1/users/{name}/history").json()["events"]
    assert [(each["timestamp_s"], each["label"]) for each in history] == [
        (10**9 + 5, 0), (10**9 + 1, 1),
    ]


def test_a_history_comes_newest_first_and_limited(service: Service) -> None:
    name = user(service, 7)
    history = service.world.histories[name]
    answer = service.client.get(f"/v1/users/{name}/history", params={"limit": 3}).json()
    assert answer["user_id"] == name
    assert [each["timestamp_s"] for each in answer["events"]] == (
        history.timestamps_s[-3:][::-1].tolist()
    )


def test_a_user_id_may_hold_any_text(service: Service) -> None:
    name = "a/b ?&é'\"; DROP TABLE events"
    stored = service.post("/v1/events", {"events": [event(service, name, 1)]})
    assert stored.json()["events"][0]["status"] == "stored"
    answer = service.client.get(f"/v1/users/{quote(name, safe='')}/history").json()
    assert answer["user_id"] == name
    assert len(answer["events"]) == 1


def test_who_has_no_time_is_answered_by_the_crm(service: Service) -> None:
    name = user(service, 6)
    hurried = service.recommend(user_id=name, deadline_ms=1)
    assert hurried["mode"] == "crm"
    assert all(item["llm_score"] is None for item in hurried["items"])
    scores = [item["crm_score"] for item in hurried["items"]]
    assert scores == sorted(scores, reverse=True)
    assert service.recommend(user_id=name, deadline_ms=60_000)["mode"] == "full"
    asked = {"user_id": name, "candidates": ["1", "2"], "deadline_ms": 1}
    assert service.post("/v1/score", asked).json()["mode"] == "crm"


def test_an_answer_is_kept_under_its_request_id(service: Service) -> None:
    name = user(service, 4)
    answers = [service.recommend(user_id=name, k=3), service.recommend(history=[], k=2)]
    database = open_database(service.database_url)
    ids = [answer["request_id"] for answer in answers]
    deadline = time.monotonic() + 30
    while len(kept := read_impressions(database, ids)) < 2:
        assert time.monotonic() < deadline      # stored behind the answer's back
        time.sleep(0.05)
    for answer, user_id in zip(answers, (name, None), strict=True):
        found = kept[answer["request_id"]]
        assert (found.user_id, found.release_id, found.mode) == (
            user_id, answer["release_id"], answer["mode"]
        )
        assert abs(found.asked_s - time.time()) < 60
        assert [(item.item_id, item.score, item.crm_score, item.llm_score)
                for item in found.items] == [
            (item["item_id"], item["score"], item["crm_score"], item["llm_score"])
            for item in answer["items"]
        ]
    follow = event(service, name, 7, request_id=ids[0])
    statuses = [service.post("/v1/events", {"events": [each]}).json()["events"][0]["status"]
                for each in (follow, follow, {**follow, "request_id": ids[1]})]
    assert statuses == ["stored", "duplicate", "rejected"]
    database.dispose()


def test_an_answer_that_is_not_to_be_recorded_is_not_kept(service: Service) -> None:
    name = user(service, 4)
    unkept, kept = (
        service.recommend(user_id=name, record=record)["request_id"] for record in (False, True)
    )
    database = open_database(service.database_url)
    deadline = time.monotonic() + 30
    while kept not in (found := read_impressions(database, [unkept, kept])):
        assert time.monotonic() < deadline      # in order: what came before would be there, too
        time.sleep(0.05)
    assert unkept not in found
    database.dispose()


def test_events_that_are_sent_at_once_have_their_own_statuses(service: Service) -> None:
    """They may share commits."""
    import asyncio

    groups = [
        [event(service, f"at-once-{place}", number) for number in range(place % 3 + 1)]
        + [event(service, "at-once", 0), event(service, f"at-once-{place}", 1, item_id="none")]
        for place in range(24)
    ]

    async def send() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=service.url, timeout=60, trust_env=False) as client:
            return await asyncio.gather(*(
                client.post("/v1/events", json={"events": group}) for group in groups
            ))

    shared = []
    for place, response in enumerate(asyncio.run(send())):
        *own, common, bad = [each["status"] for each in response.json()["events"]]
        assert own == ["stored"] * (place % 3 + 1)
        assert bad == "rejected"
        shared.append(common)
        history = service.client.get(f"/v1/users/at-once-{place}/history").json()["events"]
        assert len(history) == place % 3 + 1
    assert sorted(shared) == ["duplicate"] * 23 + ["stored"]


def test_a_deleted_user_is_a_stranger_at_once_and_may_come_back(service: Service) -> None:
    name = "somebody who leaves"
    path = f"/v1/users/{name}"
    sent = [event(service, name, number) for number in range(3, 8)]
    service.post("/v1/events", {"events": sent})
    assert service.recommend(user_id=name)["mode"] == "full"
    before_s = int(time.time())
    gone = service.client.delete(path)
    assert gone.status_code == 200
    assert gone.json()["user_id"] == name
    assert gone.json()["events"] == len(sent)
    assert before_s <= gone.json()["deleted_s"] <= time.time()
    answer = service.recommend(user_id=name)
    assert (answer["mode"], answer["history"]["length"]) == ("popular", 0)
    assert service.client.get(f"{path}/history").status_code == 404

    later_s = gone.json()["deleted_s"] + 1
    old, new = event(service, name, 1), event(service, name, 2, timestamp_s=later_s)
    statuses = service.post("/v1/events", {"events": [old, new]}).json()["events"]
    assert [each["status"] for each in statuses] == ["rejected", "stored"]
    assert "was deleted" in statuses[0]["reason"]
    assert service.recommend(user_id=name)["history"]["length"] == 1
    assert service.client.delete(path).json()["events"] == 1
    assert service.client.delete(path).json()["events"] == 0


@pytest.mark.parametrize(("path", "body", "named"), [
    ("/v1/recommend", {"user_id": "u", "candidates": ["1", "nope"]}, "nope"),
    ("/v1/score", {"history": [], "candidates": ["nix"]}, "nix"),
    ("/v1/recommend", {"history": [{"item_id": "gone"}]}, "gone"),
])
def test_an_unknown_item_is_a_404_that_names_it(
    service: Service, path: str, body: dict[str, Any], named: str
) -> None:
    answer = service.post(path, body)
    assert answer.status_code == 404
    assert answer.json()["error"] == "UnknownItemError"
    assert repr(named) in answer.json()["message"]


def test_the_history_of_nobody_is_a_404(service: Service) -> None:
    answer = service.client.get("/v1/users/nobody-at-all/history")
    assert answer.status_code == 404
    assert "'nobody-at-all'" in answer.json()["message"]


RECOMMEND, SCORE, EVENTS = "/v1/recommend", "/v1/score", "/v1/events"
ONE = {"event_id": "x", "user_id": "u", "item_id": "1", "timestamp_s": 1, "rating": 1.0}
NAN = float("nan")


@pytest.mark.parametrize(("path", "body", "field"), [
    (RECOMMEND, {}, "user_id"),
    (RECOMMEND, {"user_id": "1", "history": []}, "history"),
    (RECOMMEND, {"user_id": 1}, "user_id"),
    (RECOMMEND, {"user_id": ""}, "user_id"),
    (RECOMMEND, {"user_id": "a\x00b"}, "user_id"),
    (RECOMMEND, {"user_id": "u" * 201}, "user_id"),
    (RECOMMEND, {"user_id": "1", "k": 0}, "k"),
    (RECOMMEND, {"user_id": "1", "k": -3}, "k"),
    (RECOMMEND, {"user_id": "1", "k": 21}, "k"),
    (RECOMMEND, {"user_id": "1", "k": 10**30}, "k"),
    (RECOMMEND, {"user_id": "1", "k": "5"}, "k"),
    (RECOMMEND, {"user_id": "1", "k": 5.0}, "k"),
    (RECOMMEND, {"user_id": "1", "k": True}, "k"),
    (RECOMMEND, {"user_id": "1", "k": NAN}, "k"),
    (RECOMMEND, {"user_id": "1", "deadline_ms": 0}, "deadline_ms"),
    (RECOMMEND, {"user_id": "1", "deadline_ms": 10**9}, "deadline_ms"),
    (RECOMMEND, {"user_id": "1", "candidates": []}, "candidates"),
    (RECOMMEND, {"user_id": "1", "candidates": [1]}, "candidates.0"),
    (RECOMMEND, {"user_id": "1", "candidates": "1"}, "candidates"),
    (RECOMMEND, {"user_id": "1", "candidates": ["1", "2", "1"]}, "candidates.2"),
    (RECOMMEND, {"user_id": "1", "candidates": [str(n) for n in range(31)]}, "candidates"),
    (RECOMMEND, {"user_id": "1", "explain": "yes"}, "explain"),
    (RECOMMEND, {"user_id": "1", "speed": 3}, "speed"),
    (RECOMMEND, {"user_id": "1", "filters": {"exclude_seen": 1}}, "filters.exclude_seen"),
    (RECOMMEND, {"user_id": "1", "filters": {"fields": {"colour": ["red"]}}},
     "filters.fields.colour"),
    (RECOMMEND, {"user_id": "1", "filters": {"fields": {"genres": "Drama"}}},
     "filters.fields.genres"),
    (RECOMMEND, {"user_id": "1", "filters": {"only": 1}}, "filters.only"),
    (RECOMMEND, {"history": [{"item_id": "1", "rating": NAN}]}, "history.0.rating"),
    (RECOMMEND, {"history": [{"item_id": "1", "rating": 7.0}]}, "history.0.rating"),
    (RECOMMEND, {"history": [{"item_id": "1", "rating": "5"}]}, "history.0.rating"),
    (RECOMMEND, {"history": [{"rating": 1.0}]}, "history.0.item_id"),
    (RECOMMEND, {"history": [{"item_id": "1", "label": 2}]}, "history.0.label"),
    (RECOMMEND, {"history": [{"item_id": "1"}] * 61}, "history"),
    (RECOMMEND, [], "body"),
    (RECOMMEND, "text", "body"),
    (RECOMMEND, None, "body"),
    (SCORE, {"user_id": "1"}, "candidates"),
    (SCORE, {"user_id": "1", "candidates": []}, "candidates"),
    (SCORE, {"candidates": ["1"]}, "user_id"),
    (EVENTS, {"events": []}, "events"),
    (EVENTS, {"events": [ONE] * 51}, "events"),
    (EVENTS, {"events": [{**ONE, "rating": NAN}]}, "events.0.rating"),
    (EVENTS, {"events": [{**ONE, "rating": float("inf")}]}, "events.0.rating"),
    (EVENTS, {"events": [ONE, {**ONE, "timestamp_s": 1.5}]}, "events.1.timestamp_s"),
    (EVENTS, {"events": [{**ONE, "timestamp_s": -1}]}, "events.0.timestamp_s"),
    (EVENTS, {"events": [{**ONE, "timestamp_s": 1_700_000_000_000}]}, "events.0.timestamp_s"),
    (EVENTS, {"events": [{**ONE, "label": 2}]}, "events.0.label"),
    (EVENTS, {"events": [{**ONE, "label": True}]}, "events.0.label"),
    (EVENTS, {"events": [{**ONE, "event_id": None}]}, "events.0.event_id"),
    (EVENTS, {"events": [{**ONE, "item_id": "\ud800"}]}, "events.0.item_id"),
])
def test_a_bad_request_is_a_422_that_names_the_field(
    service: Service, path: str, body: Any, field: str
) -> None:
    answer = service.client.post(
        path, content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 422, answer.text
    assert field in answer.json()["fields"]
    assert answer.json()["message"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"user_id": "1"', b"\xff\xfe", b"[" * 100_000, b"1" * 10_000]
)
def test_a_body_that_is_no_json_is_a_422(service: Service, content: bytes) -> None:
    answer = service.client.post(
        RECOMMEND, content=content, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 422, answer.text
    assert answer.json()["fields"]


def test_a_body_that_is_too_large_is_a_413_however_it_comes(service: Service) -> None:
    pieces = [b" " * 2**20] * 17
    for content in (b"".join(pieces), iter(pieces)):            # with its length, and in chunks
        answer = service.client.post(
            EVENTS, content=content, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 413


@pytest.mark.parametrize(("path", "status"), [
    ("/v1/users/a%00b/history", 422), ("/v1/users/u/history?limit=0", 422),
    ("/v1/users/u/history?limit=x", 422), ("/nowhere", 404), ("/v1/users?limit=0", 422),
    ("/v1/users?limit=1001", 422), ("/v1/users?prefix=a%00b", 422),
    ("/v1/users?prefix=" + "a" * 201, 422), ("/v1/items?limit=-1", 422),
    ("/v1/items?text=%00", 422), ("/v1/items?text=" + "a" * 201, 422), ("/page/..%2fpages.py", 404),
    ("/page/none.js", 404),
])
def test_a_bad_path_is_no_500(service: Service, path: str, status: int) -> None:
    answer = service.client.get(path)
    assert answer.status_code == status
    assert answer.json()["error"]


def test_items_are_found_by_title_and_id_popular_ones_first(service: Service) -> None:
    catalogue = service.world.catalogue
    top = [catalogue.item_ids[item] for item in service.world.popularity().top]

    def found(**query: Any) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = service.client.get("/v1/items", params=query).json()["items"]
        return items

    assert [item["item_id"] for item in found(limit=5)] == top[:5]
    assert [item["item_id"] for item in found(text="tITLE 3", limit=50)] == [
        item_id for item_id in top if f"Title {item_id}".startswith("Title 3")
    ]
    [first, *others] = found(text="3")
    assert first["item_id"] == "3"
    assert first["title"] == "Title 3"
    assert first["fields"]["year"] == list(catalogue.fields["year"][catalogue.index_of("3")])
    assert [item["item_id"] for item in others] == [
        item_id for item_id in top if "3" in item_id and item_id != "3"
    ][:19]
    assert found(text="' OR '1'='1") == []


def test_users_are_found_by_the_beginning_of_their_id(service: Service) -> None:
    names = ["pre%fix", "pre%fix 2", "prefix", "pre_"]
    service.post("/v1/events", {"events": [event(service, name, 1) for name in names]})

    def found(**query: Any) -> list[str]:
        ids: list[str] = service.client.get("/v1/users", params=query).json()["user_ids"]
        return ids

    assert found(prefix="pre%") == ["pre%fix", "pre%fix 2"]
    assert found(prefix="pre_") == ["pre_"]
    assert found(prefix="pre", limit=2) == ["pre%fix", "pre%fix 2"]
    assert service.client.delete("/v1/users/prefix").status_code == 200
    assert found(prefix="pre") == ["pre%fix", "pre%fix 2", "pre_"]
    assert len(found()) == min(20, len(found(limit=1000)))


def test_the_catalogue_says_what_may_be_asked_and_told(service: Service) -> None:
    assert service.client.get("/v1/catalogue").json() == {
        "release_id": service.live_id, "items": 40, "fields": ["genres", "year"],
        "labels": [0, 1], "rating_min": 1.0, "rating_max": 5.0, "max_k": 20, "max_history": 60,
    }


def test_a_guest_may_dislike(service: Service) -> None:
    ids = service.world.catalogue.item_ids
    history = [{"item_id": ids[1], "label": 0}, {"item_id": ids[2], "label": 1}]
    newest = service.recommend(history=history)["history"]["newest"]
    assert [event["label"] for event in newest] == [1, 0]


def test_without_a_live_release_every_answer_is_a_503(service: Service) -> None:
    assert service.before_promotion == {
        "/healthz": 200, "/readyz": 503, "/v1/release": 200, "/v1/recommend": 503,
        "/v1/score": 503, "/v1/events": 503, "/v1/users/1/history": 503, "/v1/items": 503,
        "/v1/catalogue": 503, "/v1/users": 200, "/": 200,
    }


def test_the_interface_describes_itself(service: Service) -> None:
    assert service.client.get("/docs").status_code == 200
    paths = service.client.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/v1/recommend", "/v1/score", "/v1/events", "/v1/users/{user_id}/history",
        "/v1/users/{user_id}", "/v1/users", "/v1/items", "/v1/catalogue", "/v1/release", "/healthz",
        "/readyz",
    }
    assert service.client.get("/healthz").json() == {"status": "ok"}


def test_the_release_page_names_every_replica(service: Service) -> None:
    state = service.client.get("/v1/release").json()
    assert state["release_id"] == service.live_id
    assert [len(state[name]) for name in ("retriever", "scorer")] == [1, 1]
    assert state["scorer"][0]["refusals"] == []
