"""A scorer is killed under load: no client notices more than a slow answer."""

import os
import signal
import threading
import time

import psutil
import pytest

from tests.serving.conftest import Service

pytestmark = pytest.mark.ray


def scorer_pids() -> list[int]:
    """Return the processes of this test's scorers; Ray names a replica's process by its actor."""
    ours = psutil.Process().children(recursive=True)
    return [each.pid for each in ours if "ServeReplica:lifelora:Scorer" in " ".join(cmdline(each))]


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return [process.name(), *process.cmdline()]
    except psutil.Error:
        return []


def test_a_killed_scorer_costs_no_client_an_answer(service: Service) -> None:
    names = sorted(service.world.histories)
    service.wait("/readyz", lambda body: body.get("is_ready"))
    replies: list[tuple[int, str]] = []
    is_over = threading.Event()

    def ask(place: int) -> None:
        while not is_over.is_set():
            answer = service.post(
                "/v1/recommend", {"user_id": names[place], "k": 5, "deadline_ms": 5000}
            )
            replies.append((answer.status_code, answer.json().get("mode", "")))

    clients = [threading.Thread(target=ask, args=(place,)) for place in range(4)]
    for client in clients:
        client.start()
    time.sleep(1)
    [killed] = scorer_pids()
    before = len(replies)
    os.kill(killed, signal.SIGKILL)
    deadline = time.monotonic() + 60

    def is_back() -> bool:
        return scorer_pids() not in ([killed], []) and replies[-1] == (200, "full")

    while not is_back() and time.monotonic() < deadline:
        time.sleep(0.2)
    is_over.set()
    for client in clients:
        client.join()
    assert before > 0
    assert len(replies) > before + len(clients)
    assert {status for status, _ in replies} == {200}
    assert {mode for _, mode in replies} == {"full", "crm"}
    service.wait("/readyz", lambda body: body.get("is_ready"))
    assert service.recommend(user_id=names[0])["mode"] == "full"
