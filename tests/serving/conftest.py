"""One application for this folder's tests, deployed as an operator does: by a config over REST."""

import json
import logging
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.state.database import open_database
from jobs import promote
from tests.serve_config import local_serve_config
from tests.tiny_release import TinyWorld, tiny_world

REPO = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Service:
    """A running application."""

    url: str
    dashboard: str
    world: TinyWorld
    database_url: str
    client: httpx.Client
    before_promotion: dict[str, int] = field(default_factory=dict)
    """Path -> status while no release was live."""

    @property
    def live_id(self) -> str:
        return self.world.registry.live().release_id

    def post(self, path: str, body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def recommend(self, **body: Any) -> dict[str, Any]:
        answer = self.post("/v1/recommend", body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def promote(self, release_id: str) -> int:
        return promote.main([release_id, *self.options])

    @property
    def options(self) -> list[str]:
        return ["--registry", self.world.registry_root, "--address", self.dashboard,
                "--endpoint", self.url, "--timeout-s", str(START_TIMEOUT_S)]

    def wait(self, path: str, accept: Any, timeout_s: float = START_TIMEOUT_S) -> dict[str, Any]:
        """Read a page until it is as wanted."""
        deadline = time.monotonic() + timeout_s
        body: Any = None
        while time.monotonic() < deadline:
            try:
                body = self.client.get(path).json()
                if accept(body):
                    return dict(body)
            except (httpx.TransportError, json.JSONDecodeError):
                pass
            time.sleep(0.2)
        raise AssertionError(f"{path} is still {body}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def local_config(world: TinyWorld, database_url: str, port: int) -> dict[str, Any]:
    """Return serve_configs/local.yaml with the tests' paths, port and limits."""
    config = local_serve_config(
        world.registry_root, database_url=database_url, model_cache=str(world.root), device="cpu",
        threads=1, max_events=50,
        ranking={"max_candidates": 30, "llm_candidates": 6, "max_k": 20, "max_history": 60},
        retrieval={"exact_items": 20},          # of 40: by cells, in every process alike
    )
    config["http_options"]["port"] = port
    config["applications"][0]["logging_config"] = {"encoding": "JSON"}      # as in prod.yaml
    return config


def seed_histories(world: TinyWorld, database_url: str) -> None:
    engine = open_database(database_url)
    world.seed(engine)
    engine.dispose()


def answers_before_promotion(service: Service) -> dict[str, int]:
    asks = {"user_id": "1", "candidates": ["1"]}
    event = {"event_id": "x", "user_id": "u", "item_id": "1", "timestamp_s": 1, "rating": 1.0}
    bodies = {"/v1/recommend": asks, "/v1/score": asks, "/v1/events": {"events": [event]}}
    pages = ("/", "/healthz", "/readyz", "/v1/release", "/v1/users/1/history", "/v1/users",
             "/v1/items", "/v1/catalogue")
    return {
        **{path: service.post(path, body).status_code for path, body in bodies.items()},
        **{path: service.client.get(path).status_code for path in pages},
    }


@pytest.fixture(autouse=True)
def _engine_logs_as_before() -> Iterator[None]:
    """What a deployment made in this process does to the engine's logger ends with its test."""
    logger = logging.getLogger("engine")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, level, logger.propagate = before
    logger.setLevel(level)


@pytest.fixture(scope="package")
def service(ray_local: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Serve release r1, promoted while the application runs; r2 is published, too."""
    from ray import serve
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    root = tmp_path_factory.mktemp("service")
    world = tiny_world(root)
    world.publish("r1", seed=1)
    world.publish("r2", seed=2)
    database_url = f"sqlite:///{root}/state.db"
    seed_histories(world, database_url)
    port = free_port()
    ServeSubmissionClient(ray_local).deploy_applications(local_config(world, database_url, port))
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        running = Service(url, ray_local, world, database_url, client)
        running.wait("/readyz", lambda body: body.get("scorer") and body.get("retriever"))
        running.before_promotion.update(answers_before_promotion(running))
        assert running.promote("r1") == 0
        yield running
    serve.shutdown()
    shutil.rmtree(root, ignore_errors=True)
