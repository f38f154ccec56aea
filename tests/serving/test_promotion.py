"""Releases change under a running application."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import flip_byte
from engine.errors import ReleaseError
from jobs import promote, rollback
from tests.serving.conftest import START_TIMEOUT_S, Service

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True)
def _start_from_r1(service: Service) -> None:
    if service.live_id != "r1":
        assert service.promote("r1") == 0


def replicas(service: Service) -> list[dict[str, Any]]:
    state = service.client.get("/v1/release").json()
    return [*state["retriever"], *state["scorer"]]


def replica_pids(service: Service, deployment: str) -> list[int]:
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    details = ServeSubmissionClient(service.dashboard).get_serve_details()
    found = details["applications"]["lifelora"]["deployments"][deployment]["replicas"]
    return [replica["pid"] for replica in found if replica["state"] == "RUNNING"]


def kill_replica(service: Service, deployment: str) -> None:
    """Kill the only replica of a deployment and wait for the next one."""
    [pid] = replica_pids(service, deployment)
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        pids = replica_pids(service, deployment)
        if pids and pid not in pids:
            break
        time.sleep(0.3)
    service.wait("/readyz", lambda body: body.get("is_ready"))


def test_a_promotion_reaches_every_replica_and_no_answer_mixes_two_releases(
    service: Service,
) -> None:
    name = sorted(service.world.histories)[4]
    before = service.recommend(user_id=name)
    answers: list[dict[str, Any]] = []
    statuses: list[int] = []
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            response = service.post("/v1/recommend", {"user_id": name})
            statuses.append(response.status_code)
            answers.append(response.json())

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        assert service.promote("r2") == 0
    finally:
        is_over.set()
        asking.join()
    assert {replica["release_id"] for replica in replicas(service)} == {"r2"}
    assert {replica["previous_id"] for replica in replicas(service)} == {"r1"}
    after = service.recommend(user_id=name)
    assert after["release_id"] == "r2"
    assert after["items"] != before["items"]
    assert set(statuses) == {200}
    expected = {"r1": before["items"], "r2": after["items"]}
    assert all(answer["items"] == expected[answer["release_id"]] for answer in answers)


def test_a_rollback_gives_the_same_scores_as_before(service: Service) -> None:
    name = sorted(service.world.histories)[4]
    before = service.recommend(user_id=name)
    assert service.promote("r2") == 0
    assert rollback.main(service.options) == 0
    assert service.live_id == "r1"
    after = service.recommend(user_id=name)
    assert after["release_id"] == "r1"
    assert after["items"] == before["items"]


def test_replicas_killed_after_a_promotion_come_back_with_the_promoted_release(
    service: Service,
) -> None:
    assert service.promote("r2") == 0
    for deployment in ("Scorer", "Retriever"):
        kill_replica(service, deployment)
        assert {replica["release_id"] for replica in replicas(service)} == {"r2"}
    assert service.recommend(user_id=sorted(service.world.histories)[0])["release_id"] == "r2"


def test_the_death_of_a_scorer_fails_no_request(service: Service) -> None:
    """There is no other one: until it is back, the CRM answers."""
    names = sorted(service.world.histories)[:3]
    answers: list[tuple[int, str]] = []
    is_over = threading.Event()

    def ask(name: str) -> None:
        while not is_over.is_set():
            response = service.post("/v1/recommend", {"user_id": name, "deadline_ms": 3000})
            answers.append((response.status_code, response.json().get("mode")))

    asking = [threading.Thread(target=ask, args=(name,)) for name in names]
    for thread in asking:
        thread.start()
    try:
        while (200, "full") not in answers:
            time.sleep(0.05)
        kill_replica(service, "Scorer")
    finally:
        is_over.set()
        for thread in asking:
            thread.join()
    assert {status for status, _ in answers} == {200}
    assert {mode for _, mode in answers} == {"full", "crm"}
    assert service.recommend(user_id=names[0])["mode"] == "full"


def test_a_broken_release_is_never_promoted(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(service.world.publish("broken-before", seed=3))
    flip_byte(folder / "bank/bank.safetensors")
    assert service.promote("broken-before") == 1
    assert "bank.safetensors" in capsys.readouterr().err
    assert service.live_id == "r1"


def test_a_release_that_breaks_after_its_promotion_is_refused_and_the_old_one_goes_on(
    service: Service,
) -> None:
    name = sorted(service.world.histories)[4]
    before = service.recommend(user_id=name)
    folder = Path(service.world.publish("broken-after", seed=4))
    service.world.registry.promote("broken-after")
    flip_byte(folder / "bank/bank.safetensors")
    change = promote.bump_change(service.dashboard)
    with pytest.raises(ReleaseError, match=r"refused.*bank\.safetensors"):
        promote.wait_for(service.url, "broken-after", change, START_TIMEOUT_S)
    ready = service.wait("/readyz", lambda body: all(
        replica["refusals"] for replica in [*body["retriever"], *body["scorer"]]
    ))
    assert ready["is_ready"]
    for replica in replicas(service):
        assert replica["release_id"] == "r1"
        [refusal] = replica["refusals"]
        assert refusal["release_id"] == "broken-after"
        assert "ChecksumError" in refusal["reason"]
    assert service.recommend(user_id=name)["items"] == before["items"]

    kill_replica(service, "Scorer")      # it starts anew: nothing held, `live` is broken
    [scorer] = service.client.get("/v1/release").json()["scorer"]
    assert scorer["release_id"] == "r1"
    assert [each["release_id"] for each in scorer["refusals"]] == ["broken-after"]
    assert service.recommend(user_id=name)["items"] == before["items"]

    assert rollback.main(service.options) == 0
    assert all(replica["refusals"] == [] for replica in replicas(service))
