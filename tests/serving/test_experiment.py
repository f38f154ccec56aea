"""A challenger under a running application."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from engine.releases.experiment import Experiment
from engine.state.database import IMPRESSIONS, open_database
from jobs import experiment
from tests.serving.conftest import Service

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True)
def _r1_alone(service: Service) -> Iterator[None]:
    if service.live_id != "r1":
        assert service.promote("r1") == 0
    yield
    assert experiment.main(["stop", *service.options]) == 0
    if service.live_id != "r1":
        assert service.promote("r1") == 0


def items_by_release(service: Service, user_id: str) -> dict[str, Any]:
    """Return what a user gets while r1 and while r2 is live."""
    found = {}
    for release_id in ("r2", "r1"):
        assert service.promote(release_id) == 0
        found[release_id] = service.recommend(user_id=user_id)["items"]
    assert found["r1"] != found["r2"]
    return found


def kept(service: Service, request_ids: list[str]) -> list[Any]:
    """Return the rows of these requests and of their shadows, once all given ones are stored."""
    database = open_database(service.database_url)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with database.connect() as connection:
                rows = connection.execute(select(IMPRESSIONS)).all()
            found = [row for row in rows
                     if row.request_id in request_ids or row.shadow_of in request_ids]
            if len(found) >= 2 * len(request_ids):
                return found
            time.sleep(0.1)
        return found
    finally:
        database.dispose()


def test_users_of_the_share_get_the_release_on_trial(service: Service) -> None:
    users = sorted(service.world.histories)
    half = Experiment("r2", 0.5, False, 0)
    included, other = (next(user for user in users if half.includes(user) is is_included)
                       for is_included in (True, False))
    expected = items_by_release(service, included)
    assert experiment.main(["start", "r2", "--share", "0.5", *service.options]) == 0
    state = service.client.get("/v1/release").json()
    for replica in [*state["retriever"], *state["scorer"]]:
        assert replica["release_id"] == "r1"
        assert replica["experiment"]["release_id"] == "r2"
    tried = service.recommend(user_id=included)
    assert (tried["release_id"], tried["items"]) == ("r2", expected["r2"])
    assert service.recommend(user_id=other)["release_id"] == "r1"
    guest = service.recommend(history=[{"item_id": service.world.catalogue.item_ids[1]}])
    assert guest["release_id"] == "r1"
    scored = service.post("/v1/score", {
        "user_id": included, "candidates": [service.world.catalogue.item_ids[1]],
    })
    assert scored.json()["release_id"] == "r2"
    assert experiment.main(["stop", *service.options]) == 0
    again = service.recommend(user_id=included)
    assert (again["release_id"], again["items"]) == ("r1", expected["r1"])


def test_a_shadow_is_stored_beside_the_answer(service: Service) -> None:
    user_id = sorted(service.world.histories)[3]
    expected = items_by_release(service, user_id)
    assert experiment.main(["start", "r2", "--share", "1", "--shadow", *service.options]) == 0
    answer = service.recommend(user_id=user_id)
    assert (answer["release_id"], answer["items"]) == ("r1", expected["r1"])
    given, shadow = sorted(kept(service, [answer["request_id"]]), key=lambda row: row.release_id)
    assert (given.release_id, given.shadow_of) == ("r1", None)
    assert (shadow.release_id, shadow.shadow_of) == ("r2", answer["request_id"])
    assert (shadow.user_id, shadow.mode, shadow.asked_s) == (user_id, "full", given.asked_s)
    for row, release_id in ((given, "r1"), (shadow, "r2")):
        assert [item[0] for item in row.items] == [
            item["item_id"] for item in expected[release_id]
        ]


def test_a_promotion_of_the_release_on_trial_ends_the_experiment(service: Service) -> None:
    assert experiment.main(["start", "r2", "--share", "0.5", *service.options]) == 0
    assert service.promote("r2") == 0
    state = service.client.get("/v1/release").json()
    for replica in [*state["retriever"], *state["scorer"]]:
        assert (replica["release_id"], replica["experiment"]) == ("r2", None)
