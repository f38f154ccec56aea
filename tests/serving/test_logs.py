import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.serving.logs import SERVE, log_with_serve
from tests.serving.conftest import Service


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(f"{record.levelname} {record.name} {record.getMessage()}")


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Return what Serve's logger gets."""
    handler, handlers, level = Lines(), SERVE.handlers, SERVE.level
    SERVE.handlers = [handler]
    SERVE.setLevel(logging.INFO)
    yield handler
    SERVE.handlers = handlers
    SERVE.setLevel(level)


def test_lines_go_to_serve_once_at_its_level(lines: Lines) -> None:
    log_with_serve()
    log_with_serve()
    log = logging.getLogger("engine.serving.releases")
    log.debug("too low")
    log.info("release %s", "r1")
    log.error("refused")
    assert lines.found == [
        "INFO engine.serving.releases release r1", "ERROR engine.serving.releases refused",
    ]
    SERVE.setLevel(logging.ERROR)
    log.warning("too low now")
    assert len(lines.found) == 2
    other = Lines()
    SERVE.handlers = [other]            # as a new logging config does
    log.error("again")
    assert other.found == ["ERROR engine.serving.releases again"]


def logged(deployment: str) -> list[dict[str, Any]]:
    """Return the lines of a deployment's replicas."""
    from ray._private.worker import _global_node

    folder = Path(_global_node.get_session_dir_path()) / "logs" / "serve"
    files = list(folder.glob(f"replica_lifelora_{deployment}_*.log"))
    assert files
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def lines_of(request_id: str) -> list[dict[str, Any]]:
    """Return the ingress's lines about a request; they are written after its answer."""
    deadline = time.monotonic() + 30
    while True:
        found = [line for line in logged("Ingress") if line.get("request_id") == request_id]
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


@pytest.mark.ray
def test_each_line_of_a_replica_is_json_and_names_its_request(service: Service) -> None:
    for deployment in ("Retriever", "Scorer"):
        live = [line for line in logged(deployment)
                if line["message"].startswith("release r1 is live")]
        assert live
        assert {line["deployment"] for line in live} == {f"lifelora_{deployment}"}
    answer = service.client.post(
        "/v1/recommend", json={"user_id": "nobody"}, headers={"x-request-id": "my-request"}
    )
    assert answer.headers["x-request-id"] == "my-request"
    mine = lines_of("my-request")
    assert mine
    assert {line["route"] for line in mine} == {"/v1/recommend"}
