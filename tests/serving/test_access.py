import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from ray import serve

from engine.config import ServingConfig
from engine.errors import ConfigError, ForbiddenError, UnknownKeyError
from engine.serving.access import Access, Right
from engine.serving.ingress import Ingress, listening_hosts
from engine.serving.retriever import ItemStatus
from engine.state.deletions import Deletion
from engine.state.events import EventState, EventStatus
from engine.state.items import ItemState
from tests.serving.conftest import Service

EVENTS_KEY, OLD_KEY, ADMIN_KEY = "events-key-of-today", "events-key-of-before", "administrator-key"
ENVIRONMENT = {Right.EVENTS: f"{EVENTS_KEY}, {OLD_KEY},", Right.ADMIN: ADMIN_KEY}


@pytest.mark.parametrize(("key", "right", "error"), [
    (EVENTS_KEY, Right.EVENTS, None), (OLD_KEY, Right.EVENTS, None),
    (ADMIN_KEY, Right.EVENTS, None), (ADMIN_KEY, Right.ADMIN, None),
    (EVENTS_KEY, Right.ADMIN, ForbiddenError), (None, Right.EVENTS, UnknownKeyError),
    ("", Right.EVENTS, UnknownKeyError), (EVENTS_KEY[:-1], Right.EVENTS, UnknownKeyError),
    (ADMIN_KEY + "x", Right.ADMIN, UnknownKeyError), ("kéy 🗝", Right.ADMIN, UnknownKeyError),
    (f"{EVENTS_KEY}, {OLD_KEY}", Right.EVENTS, UnknownKeyError),
])
def test_a_key_is_good_for_its_right(
    key: str | None, right: Right, error: type[Exception] | None
) -> None:
    access = Access.of_environment(ENVIRONMENT)
    if error is None:
        access.require(right, key)
        return
    with pytest.raises(error, match=right.value) as caught:
        access.require(right, key)
    assert not key or key not in str(caught.value)


def test_without_any_key_everything_is_allowed() -> None:
    Access.of_environment({}).require(Right.ADMIN, None)


def test_keys_for_events_alone_leave_nobody_to_administrate() -> None:
    access = Access.of_environment({Right.EVENTS: EVENTS_KEY})
    access.require(Right.EVENTS, EVENTS_KEY)
    with pytest.raises(UnknownKeyError):
        access.require(Right.ADMIN, "")


def test_a_short_key_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match=r"LIFELORA_ADMIN_KEYS: key 2 has 6 characters") as caught:
        Access.of_environment({Right.ADMIN: f"{ADMIN_KEY},secret"})
    assert not re.search(rf"secret|{ADMIN_KEY}", str(caught.value))
    assert ADMIN_KEY not in repr(Access.of_environment(ENVIRONMENT))


def test_a_key_that_no_header_carries_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"LIFELORA_EVENTS_KEYS: key 1 has letters"):
        Access.of_environment({Right.EVENTS: "schlüssel-der-ereignisse"})


@pytest.mark.parametrize(("host", "is_open"), [
    ("127.0.0.1", False), ("127.1.2.3", False), ("::1", False), ("localhost", False),
    ("0.0.0.0", True), ("::", True), ("10.0.0.7", True), ("recommender.example", True),
])
def test_without_keys_only_this_machine_may_be_listened_to(host: str, is_open: bool) -> None:
    Access.of_environment(ENVIRONMENT).check_listeners([host])
    Access().check_listeners([])
    if is_open:
        with pytest.raises(ConfigError, match=rf"\['{re.escape(host)}'\].*LIFELORA_EVENTS_KEYS"):
            Access().check_listeners(["127.0.0.1", host])
    else:
        Access().check_listeners([host])


def test_an_open_service_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Ingress.func_or_class.__bases__[0]      # type: ignore[attr-defined]
    names = plain.__init__.__globals__              # Serve pickles the class with its module
    monkeypatch.setitem(names, "listening_hosts", lambda: ["0.0.0.0"])
    kind = type("Plain", (plain,), {"__del__": lambda self: None})      # Serve awaits it
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0"):
        kind(ServingConfig(), None, None)


class Retriever:
    """Answers as if all were stored."""

    async def append(self, events: list[object]) -> list[EventStatus]:
        return [EventStatus(EventState.STORED) for _ in events]

    async def users(self, prefix: str, limit: int) -> list[str]:
        return ["u"]

    async def delete(self, user_id: str) -> Deletion:
        return Deletion(user_id, 5, 0)

    async def put_items(self, items: list[Any]) -> list[ItemStatus]:
        return [ItemStatus(ItemState.STORED) for _ in items]

    put_users = put_items

    async def embed(self) -> bool:
        return True

    async def forget(self) -> None:
        """Nothing is kept."""


@pytest.fixture
def locked(service: Service) -> Iterator[str]:
    """Return the path of an ingress that has keys."""
    light = {"ray_actor_options": {"num_cpus": 0}}
    keyed = {"num_cpus": 0, "runtime_env": {"env_vars": dict(ENVIRONMENT)}}
    stub = serve.deployment(Retriever).options(**light).bind()
    serve.run(
        Ingress.options(ray_actor_options=keyed).bind(ServingConfig(), stub, stub),
        name="locked", route_prefix="/locked",
    )
    yield "/locked"
    serve.delete("locked")


@pytest.mark.ray
def test_what_changes_anything_needs_its_keys_over_http(service: Service, locked: str) -> None:
    event = {"event_id": "x", "user_id": "u", "item_id": "1", "timestamp_s": 1, "rating": 1.0}

    def ask(method: str, path: str, key: str | None) -> httpx.Response:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        bodies = {"/v1/events": {"events": [event]},
                  "/v1/items": {"items": [{"item_id": "1", "title": "One"}]},
                  "/v1/users": {"users": [{"user_id": "u", "fields": {}}]}}
        body = bodies.get(path)
        return service.client.request(method, f"{locked}{path}", json=body, headers=headers)

    sending, deleting = ("POST", "/v1/events"), ("DELETE", "/v1/users/u")
    listing = ("GET", "/v1/users")
    keys = (None, "not-a-key-at-all", EVENTS_KEY, ADMIN_KEY)
    assert [ask(*sending, key).status_code for key in keys] == [401, 401, 200, 200]
    assert [ask(*listing, key).status_code for key in keys] == [401, 401, 200, 200]
    for changing in (deleting, ("PUT", "/v1/items"), ("PUT", "/v1/users")):
        assert [ask(*changing, key).status_code for key in keys] == [401, 401, 403, 200]
    refused = ask(*deleting, None)
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["error"] == "UnknownKeyError"
    assert service.client.get(f"{locked}/healthz").status_code == 200
    page = service.client.get(locked, follow_redirects=True)
    assert (page.status_code, page.url.path) == (200, f"{locked}/")      # its links are relative
    spec = service.client.get(f"{locked}/openapi.json").json()
    assert spec["paths"]["/v1/events"]["post"]["security"]
    assert "security" not in spec["paths"]["/v1/recommend"]["post"]


@pytest.mark.ray
def test_the_listeners_are_those_of_the_serve_config(service: Service) -> None:
    assert listening_hosts() == ["127.0.0.1"]
