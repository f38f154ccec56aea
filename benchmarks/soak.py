"""Ten minutes of traffic on the live system: three release changes, one of them corrupted.

python -m benchmarks.soak --config jobs/configs/ml-100k.yaml --json benchmarks/results/soak.json

    capacity    closed loop: how many full answers a second there are
    load        open loop at 60% of that, events all the time, three release changes
    overload    open loop at 150%

The service is that of serve_configs/local.yaml with the live release of the config, in a registry
and a database of its own. A latency counts from the time at which a request was due, not from when
a busy client sent it. At the end every acknowledged event is looked for in the database.
"""

import argparse
import asyncio
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from sqlalchemy import select

from benchmarks.race import circumstances, write_result
from engine import storage
from engine.config import load_config
from engine.errors import ReleaseError
from engine.releases.registry import CONFIG, Registry
from engine.state.database import EVENTS, open_database, rows_of
from engine.state.histories import user_ids
from jobs import demo, promote, seed_state

log = logging.getLogger(__name__)

LOAD, OVERLOAD = 0.6, 1.5
"""Shares of the capacity."""
CLIENTS = 8
"""Of the closed loop."""
EVENTS_PER_S = 5.0
CHANGE_TIMEOUT_S = 300.0
GOOD = {200}
BUSY = {200, 429}


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
    deadline_ms: int | None = None
    """Of the requests of load and overload."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve, load, print and write the result; return 1 if anything failed or was lost."""
    parser = argparse.ArgumentParser(description="Traffic on the live system.")
    parser.add_argument("--config", required=True, help="YAML file of a run with a live release")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the load at 60%%")
    parser.add_argument("--deadline-ms", type=int, default=5000, help="of each request")
    parser.add_argument("--json", help="file of the result")
    options = parser.parse_args(arguments)
    from jobs.start import configure_logging, start_ray  # --help needs no Ray

    configure_logging()
    with tempfile.TemporaryDirectory() as folder:
        target = serve_copy(options.config, folder, start_ray(), options.deadline_ms)
        load_s = 60 * options.minutes
        found = asyncio.run(soak(target, load_s=load_s, part_s=max(20.0, load_s / 10)))
    command = " ".join(["python -m benchmarks.soak", *sys.argv[1:]])
    result = {"command": command, **circumstances(), **found}
    print(json.dumps(result, indent=2))
    if options.json:
        write_result(result, options.json)
    return int(found["load"]["failures"] + found["overload"]["failures"] > 0
               or found["events"]["lost"] > 0)


def serve_copy(config_file: str, folder: str, dashboard: str, deadline_ms: int) -> Target:
    """Serve a copy of a run's live release and its histories from a folder."""
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    config = load_config(config_file)
    source, registry = Registry(config.run.registry), Registry(f"{folder}/releases")
    copy_release(source, source.live().release_id, registry, "soak-first")
    registry.promote("soak-first")
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
    items = storage.read_table(storage.join(registry.folder("soak-first"), "catalogue.parquet"))
    return Target(endpoint, dashboard, registry, database_url, users,
                   items["item_id"].to_pylist(), deadline_ms)


@dataclass(frozen=True, slots=True)
class Reply:
    """One request: when it was due, and what came of it."""

    due_s: float
    latency_s: float
    status: int
    """0: no answer at all."""
    mode: str | None = None
    release_id: str | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One release change: from the command until all replicas follow or refuse."""

    release_id: str
    start_s: float
    end_s: float
    refusal: str | None


@dataclass(slots=True)
class Soak:
    """The clients of one service."""

    target: Target
    seed: int = 1
    acknowledged: set[str] = field(default_factory=set)
    """Event ids."""
    _sent: int = 0

    async def capacity(self, seconds: float) -> float:
        """Return the full answers per second under a few clients that wait for each other."""
        async with self._client() as client:
            await self._ask(client, time.perf_counter(), None)      # what is loaded only once
            end_s = time.perf_counter() + seconds

            async def one_client() -> list[Reply]:
                replies = []
                while time.perf_counter() < end_s:
                    replies.append(await self._ask(client, time.perf_counter(), None))
                return replies

            start_s = time.perf_counter()
            found = await asyncio.gather(*(one_client() for _ in range(CLIENTS)))
            took_s = time.perf_counter() - start_s
        full = sum(reply.mode == "full" for replies in found for reply in replies)
        return full / took_s

    async def load(self, rate: float, seconds: float) -> list[Reply]:
        """Send requests at random times, `rate` a second, whether or not earlier ones are done."""
        rng = np.random.default_rng(self.seed)
        start_s, due_s, tasks = time.perf_counter(), 0.0, []
        async with self._client() as client:
            while (due_s := due_s + rng.exponential(1 / rate)) < seconds:
                await asyncio.sleep(max(0.0, start_s + due_s - time.perf_counter()))
                ask = self._ask(client, start_s + due_s, self.target.deadline_ms)
                tasks.append(asyncio.create_task(ask))
            return list(await asyncio.gather(*tasks))

    async def post_events(self, rate: float) -> None:
        """Send events until cancelled; remember those that were acknowledged."""
        rng = np.random.default_rng(self.seed + 1)
        async with self._client() as client:
            while True:
                await asyncio.sleep(1 / rate)
                self._sent += 1
                event = {
                    "event_id": f"soak-{self._sent}", "timestamp_s": int(time.time()), "label": 1,
                    "user_id": str(rng.choice(self.target.user_ids)),
                    "item_id": str(rng.choice(self.target.item_ids)),
                }
                with suppress(httpx.TransportError):
                    answer = await client.post("/v1/events", json={"events": [event]})
                    if answer.status_code == 200:
                        self.acknowledged |= {
                            each["event_id"] for each in answer.json()["events"]
                            if each["status"] == "stored"
                        }

    async def _ask(
        self, client: httpx.AsyncClient, due_s: float, deadline_ms: int | None
    ) -> Reply:
        self._sent += 1
        body = {"user_id": self.target.user_ids[self._sent % len(self.target.user_ids)]}
        limit = {} if deadline_ms is None else {"deadline_ms": deadline_ms}
        try:
            answer = await client.post("/v1/recommend", json={**body, **limit})
        except httpx.TransportError as error:
            log.warning("no answer: %s", error)
            return Reply(due_s, time.perf_counter() - due_s, 0)
        latency_s = time.perf_counter() - due_s
        if answer.status_code != 200:
            return Reply(due_s, latency_s, answer.status_code)
        found = answer.json()
        return Reply(due_s, latency_s, 200, found["mode"], found["release_id"])

    def _client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        return httpx.AsyncClient(
            base_url=self.target.endpoint, timeout=300, limits=limits, trust_env=False
        )

    def lost(self) -> int:
        """Return how many acknowledged events are not in the database."""
        database = open_database(self.target.database_url)
        ids = EVENTS.c.event_id
        with database.connect() as connection:
            kept = rows_of(connection, select(ids), ids, self.acknowledged)
            lost = self.acknowledged - {row.event_id for row in kept}
        database.dispose()
        return len(lost)


async def soak(target: Target, *, load_s: float, part_s: float) -> dict[str, Any]:
    """Return the result: `part_s` each for capacity and overload, `load_s` between them."""
    clients = Soak(target)
    capacity = await clients.capacity(part_s)
    if capacity == 0:
        raise ReleaseError("no request was answered `full`: there is no capacity to measure")
    events = asyncio.create_task(clients.post_events(EVENTS_PER_S))
    changing = asyncio.create_task(change_releases(target, load_s))
    start_s = time.perf_counter()
    replies = await clients.load(LOAD * capacity, load_s)
    changes = await changing
    overload = await clients.load(OVERLOAD * capacity, part_s)
    events.cancel()
    with suppress(asyncio.CancelledError):
        await events
    before = [reply for reply in replies if reply.due_s < changes[0].start_s]
    return {
        "capacity_per_s": capacity, "deadline_ms": target.deadline_ms,
        "load": {"rate_per_s": LOAD * capacity, **summary(replies, GOOD)},
        "changes": [
            {
                "release_id": change.release_id, "refusal": change.refusal,
                "at_s": change.start_s - start_s, "seconds": change.end_s - change.start_s,
                **compared([each for each in replies
                            if change.start_s <= each.due_s <= change.end_s], before),
            }
            for change in changes
        ],
        "overload": {"rate_per_s": OVERLOAD * capacity, **summary(overload, BUSY)},
        "events": {"acknowledged": len(clients.acknowledged), "lost": clients.lost()},
    }


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


def compared(during: Sequence[Reply], before: Sequence[Reply]) -> dict[str, Any]:
    """Return the latencies during a change, and its 99th percentile over that before the first."""
    found = quantiles([reply.latency_s for reply in during])
    known = quantiles([reply.latency_s for reply in before])
    if not found or not known:
        return {"requests": len(during)}
    return {"requests": len(during), "latency_s": found, "p99_ratio": found["p99"] / known["p99"]}


def quantiles(latencies_s: Sequence[float]) -> dict[str, float]:
    """Return the median and the 99th percentile; none of nothing."""
    if not latencies_s:
        return {}
    p50, p99 = np.quantile(latencies_s, [0.5, 0.99]).tolist()
    return {"p50": p50, "p99": p99}


async def change_releases(target: Target, seconds: float) -> list[Change]:
    """Promote a release after each quarter of the time; the second one is corrupted."""
    first = target.registry.live().release_id
    registry = target.registry
    copies = {name: copy_release(registry, first, registry, name)
              for name in ("soak-good", "soak-corrupt", "soak-last")}
    start_s, changes = time.perf_counter(), []
    for quarter, (name, folder) in enumerate(copies.items(), start=1):
        due_s = start_s + quarter * seconds / 4
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        is_corrupt = name == "soak-corrupt"
        changes.append(await asyncio.to_thread(
            change_release, target, name, corrupted=folder if is_corrupt else None
        ))
    return changes


def change_release(target: Target, release_id: str, *, corrupted: str | None) -> Change:
    """Promote a release as jobs/promote.py does; `corrupted`: a byte of this folder's bank flips
    after the promotion has verified it, before any replica reads it.
    """
    start_s, refusal = time.perf_counter(), None
    target.registry.promote(release_id)
    if corrupted is not None:
        flip_byte(Path(corrupted) / "bank" / "bank.safetensors")
    number = promote.bump_change(target.dashboard)
    try:
        promote.wait_for(target.endpoint, release_id, number, CHANGE_TIMEOUT_S)
    except ReleaseError as error:
        refusal = str(error)
    return Change(release_id, start_s, time.perf_counter(), refusal)


def copy_release(source: Registry, release_id: str, target: Registry, name: str) -> str:
    """Publish the files of a release under another id; return its folder."""
    manifest, folder = source.read_manifest(release_id), source.folder(release_id)
    files = {each: storage.join(folder, each) for each in manifest.files if each != CONFIG}
    config = source.read_config(release_id).settings()
    return target.publish(name, files, {**asdict(manifest.facts), "config": config})


def flip_byte(path: Path) -> None:
    """Change one byte in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        [byte] = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


if __name__ == "__main__":
    sys.exit(main())
