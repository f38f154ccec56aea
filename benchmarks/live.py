"""A live service of a run's own release, and clients that ask it.

A latency counts from the time at which a request was due, not from when a busy client sent it.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import httpx
import numpy as np

from engine import storage
from engine.config import load_config
from engine.releases.registry import CONFIG, Registry
from engine.state.database import open_database
from engine.state.histories import user_ids
from jobs import demo, seed_state

log = logging.getLogger(__name__)

FIRST = "live-first"
"""The release that is served."""
USERS = 500
"""Users who ask."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is under load."""

    endpoint: str
    dashboard: str
    registry: Registry
    database_url: str
    user_ids: Sequence[str]
    item_ids: Sequence[str]


def serve_copy(config_file: str, folder: str, dashboard: str) -> Target:
    """Serve a copy of a run's live release and its histories from a folder."""
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    config = load_config(config_file)
    source, registry = Registry(config.run.registry), Registry(f"{folder}/releases")
    copy_release(source, source.live().release_id, registry, FIRST)
    registry.promote(FIRST)
    database_url = f"sqlite:///{folder}/state.db"
    seed_state.seed_histories(seed_state.histories_of_live(config_file), database_url)
    application = demo.serve_config(config)
    for deployment in application["applications"][0]["deployments"]:
        if "user_config" in deployment:
            deployment["user_config"] = {"registry": registry.root, "change": 1}
    application["applications"][0]["args"]["database_url"] = database_url
    ServeSubmissionClient(dashboard).deploy_applications(application)
    endpoint = f"http://127.0.0.1:{application['http_options']['port']}"
    demo.wait_until_ready(endpoint)
    database = open_database(database_url)
    users = list(islice(user_ids(database), USERS))
    database.dispose()
    items = storage.read_table(storage.join(registry.folder(FIRST), "catalogue.parquet"))
    return Target(
        endpoint, dashboard, registry, database_url, users, items["item_id"].to_pylist()
    )


def copy_release(source: Registry, release_id: str, target: Registry, name: str) -> str:
    """Publish the files of a release under another id; return its folder."""
    manifest, folder = source.read_manifest(release_id), source.folder(release_id)
    files = {each: storage.join(folder, each) for each in manifest.files if each != CONFIG}
    config = source.read_config(release_id).settings()
    return target.publish(name, files, {**asdict(manifest.facts), "config": config})


@dataclass(frozen=True, slots=True)
class Reply:
    """One request: when it was due, and what came of it."""

    due_s: float
    latency_s: float
    status: int
    """0: no answer at all."""
    mode: str | None = None
    release_id: str | None = None
    stage_ms: Mapping[str, float] = field(default_factory=dict)


class Clients:
    """Ask for the users of a target in turn."""

    def __init__(self, target: Target, deadline_ms: int | None = None) -> None:
        self._target, self._deadline_ms = target, deadline_ms
        self._asked = 0

    async def closed(self, number: int, seconds: float) -> list[Reply]:
        """Let some clients each ask again as soon as they have their answer."""
        async with connect(self._target.endpoint) as client:
            end_s = time.perf_counter() + seconds

            async def one() -> list[Reply]:
                replies = []
                while time.perf_counter() < end_s:
                    replies.append(await self.ask(client, time.perf_counter()))
                return replies

            found = await asyncio.gather(*(one() for _ in range(number)))
        return [reply for replies in found for reply in replies]

    async def opened(self, rate: float, seconds: float, seed: int = 1) -> list[Reply]:
        """Ask at random times, `rate` a second, whether or not earlier requests are answered."""
        rng = np.random.default_rng(seed)
        start_s, due_s, tasks = time.perf_counter(), 0.0, []
        async with connect(self._target.endpoint) as client:
            while (due_s := due_s + rng.exponential(1 / rate)) < seconds:
                await asyncio.sleep(max(0.0, start_s + due_s - time.perf_counter()))
                tasks.append(asyncio.create_task(self.ask(client, start_s + due_s)))
            return list(await asyncio.gather(*tasks))

    async def ask(self, client: httpx.AsyncClient, due_s: float) -> Reply:
        """Send one request that is due now or was before."""
        self._asked += 1
        users = self._target.user_ids
        body: dict[str, Any] = {"user_id": users[self._asked % len(users)]}
        if self._deadline_ms is not None:
            body["deadline_ms"] = self._deadline_ms
        try:
            answer = await client.post("/v1/recommend", json=body)
        except httpx.TransportError as error:
            log.warning("no answer: %s", error)
            return Reply(due_s, time.perf_counter() - due_s, 0)
        latency_s = time.perf_counter() - due_s
        if answer.status_code != 200:
            return Reply(due_s, latency_s, answer.status_code)
        found = answer.json()
        return Reply(
            due_s, latency_s, 200, found["mode"], found["release_id"], found["stage_ms"]
        )


def connect(endpoint: str) -> httpx.AsyncClient:
    """Return a client with as many connections as it needs."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=endpoint, timeout=300, limits=limits, trust_env=False)


def summary(replies: Sequence[Reply], allowed: set[int]) -> dict[str, Any]:
    """Return shares of modes and statuses, failures and latencies of all 200s."""
    statuses = Counter(reply.status for reply in replies)
    modes = Counter(reply.mode for reply in replies if reply.mode is not None)
    return {
        "requests": len(replies), "statuses": {str(key): n for key, n in sorted(statuses.items())},
        "modes": {mode: number / len(replies) for mode, number in sorted(modes.items())},
        "failures": sum(number for status, number in statuses.items() if status not in allowed),
        "latency_s": quantiles([reply.latency_s for reply in replies if reply.status == 200]),
    }


def quantiles(latencies_s: Sequence[float]) -> dict[str, float]:
    """Return the median and the 99th percentile; none of nothing."""
    if not latencies_s:
        return {}
    p50, p99 = np.quantile(latencies_s, [0.5, 0.99]).tolist()
    return {"p50": p50, "p99": p99}
