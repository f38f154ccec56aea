"""Items and profiles that a shop sends while the service runs."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.serving.conftest import Service

pytestmark = pytest.mark.ray

NEW = {"item_id": "feed-1", "title": "Title feed-1", "fields": {"genres": ["Airship"]}}
AIRSHIPS = {"fields": {"genres": ["Airship"]}}


def put(service: Service, path: str, body: Any) -> httpx.Response:
    return service.client.put(path, json=body)


def send(service: Service, *items: dict[str, Any]) -> list[tuple[str, str | None]]:
    """Return what became of items; their texts are read then, also where that takes long."""
    answer = put(service, "/v1/items", {"items": list(items)})
    assert answer.status_code == 200, answer.text
    deadline = time.monotonic() + 60
    is_read = answer.json()["is_embedded"]
    while not is_read and time.monotonic() < deadline:
        is_read = put(service, "/v1/items", {"items": list(items)}).json()["is_embedded"]
    assert is_read
    return [(item["status"], item["reason"]) for item in answer.json()["items"]]


@pytest.fixture
def feed(service: Service) -> Iterator[Service]:
    """Yield the service; its catalogue is as before at the end."""
    yield service
    send(service, {"item_id": "feed-1", "is_withdrawn": True})


def test_a_sent_item_is_answered_until_it_is_withdrawn(feed: Service) -> None:
    user_id = sorted(feed.world.histories)[0]

    def airships(**asker: Any) -> list[str]:
        asker = asker or {"user_id": user_id}
        items = feed.recommend(k=5, filters=AIRSHIPS, **asker)["items"]
        return [item["item_id"] for item in items]

    assert airships() == []
    assert send(feed, NEW) == [("stored", None)]
    assert send(feed, NEW) == [("unchanged", None)]
    assert airships() == airships(history=[]) == ["feed-1"]
    both = {"user_id": user_id, "candidates": ["feed-1", "1"]}
    scored = feed.post("/v1/score", both).json()["items"]
    assert all(item["llm_score"] is not None for item in scored)
    assert {item["title"] for item in scored} == {"Title feed-1", "Title 1"}
    event = {"event_id": "of-feed", "user_id": "feed-fan", "item_id": "feed-1",
             "timestamp_s": 1, "rating": 5.0}
    assert feed.post("/v1/events", {"events": [event]}).json()["events"][0]["status"] == "stored"
    [newest] = feed.client.get("/v1/users/feed-fan/history").json()["events"]
    assert newest["title"] == "Title feed-1"
    assert send(feed, {"item_id": "feed-1", "is_withdrawn": True}) == [("stored", None)]
    assert airships() == airships(history=[]) == []
    assert [item["item_id"] for item in feed.post("/v1/score", both).json()["items"]] == ["1"]


def test_another_release_has_the_items_too(feed: Service) -> None:
    assert send(feed, NEW) == [("stored", None)]
    before = feed.live_id
    for release_id in ("r2" if before == "r1" else "r1", before):
        assert feed.promote(release_id) == 0
        answer = feed.recommend(user_id=sorted(feed.world.histories)[0], k=5, filters=AIRSHIPS)
        assert answer["release_id"] == release_id
        assert (answer["mode"], [item["item_id"] for item in answer["items"]]) == (
            "full", ["feed-1"]
        )


def test_what_cannot_be_stored_is_named_and_the_rest_stored(feed: Service) -> None:
    odd = {"item_id": "feed-2", "title": "Title feed-2", "fields": {"colour": ["red"]}}
    statuses = send(feed, odd, NEW)
    assert statuses[0][0] == "rejected"
    assert "'colour'" in str(statuses[0][1])
    assert "genres" in str(statuses[0][1])
    assert statuses[1][0] in ("stored", "unchanged")
    unknown = feed.post("/v1/score", {"user_id": "x", "candidates": ["feed-2"]})
    assert unknown.status_code == 404


def test_a_sent_profile_is_used_by_the_next_answer(service: Service) -> None:
    path = "/v1/users/feed-new/history"
    assert service.client.get(path).status_code == 404
    assert service.recommend(user_id="feed-new")["mode"] == "popular"
    odd = {"user_id": "feed-odd", "fields": {"shoe": ["44"]}}
    new = {"user_id": "feed-new", "fields": {"gender": ["F"], "age": ["25"]}}
    answer = put(service, "/v1/users", {"users": [odd, new]}).json()["users"]
    assert [each["status"] for each in answer] == ["rejected", "stored"]
    assert "'shoe'" in answer[0]["reason"]
    assert service.client.get(path).json()["events"] == []
    assert service.recommend(user_id="feed-new")["mode"] == "full"
    assert service.client.delete("/v1/users/feed-new").status_code == 200
    assert service.recommend(user_id="feed-new")["mode"] == "popular"


ITEM = {"item_id": "x", "title": "X"}


@pytest.mark.parametrize(("path", "body", "field"), [
    ("/v1/items", {"items": []}, "items"),
    ("/v1/items", {"items": [{"item_id": "x"}]}, "items.0.title"),
    ("/v1/items", {"items": [{"item_id": "x", "title": ""}]}, "items.0.title"),
    ("/v1/items", {"items": [{"item_id": "x", "title": "a\0b"}]}, "items.0.title"),
    ("/v1/items", {"items": [ITEM, ITEM]}, "items.1"),
    ("/v1/items", {"items": [{**ITEM, "item_id": str(n)} for n in range(51)]}, "items"),
    ("/v1/items", {"items": [{**ITEM, "fields": {"genres": "Drama"}}]}, "items.0.fields.genres"),
    ("/v1/items", {"items": [{"item_id": "x", "is_withdrawn": True,
                              "fields": {"genres": ["Drama"]}}]}, "items.0.fields"),
    ("/v1/users", {"users": [{"user_id": "x"}]}, "users.0.fields"),
    ("/v1/users", {"users": [{"user_id": "x", "fields": {}}] * 2}, "users.1"),
])
def test_a_bad_feed_is_a_422_that_names_the_field(
    service: Service, path: str, body: Any, field: str
) -> None:
    answer = put(service, path, body)
    assert answer.status_code == 422
    assert answer.json()["fields"] == [field]
