"""Ten minutes of traffic on the live system: three release changes, one of them corrupted.

python -m benchmarks.soak --config jobs/configs/ml-100k.yaml --json OUT

    capacity    closed loop: how many full answers a second there are
    load        open loop at 60% of that, events and items all the time, three release changes
    overload    open loop at 150%

The service is that of serve_configs/local.yaml with the live release of the config, in a registry
and a database of its own. At the end every acknowledged event is looked for in the database.
"""

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from sqlalchemy import select

from benchmarks.live import (
    Clients,
    Reply,
    Target,
    connect,
    copy_release,
    quantiles,
    serve_copy,
    summary,
)
from benchmarks.race import circumstances, write_result
from engine.errors import ReleaseError
from engine.state.database import EVENTS, open_database, rows_of
from jobs import promote

LOAD, OVERLOAD = 0.6, 1.5
"""Shares of the capacity."""
CLIENTS = 8
"""Of the closed loop."""
EVENTS_PER_S = 5.0
ITEMS_EVERY = 20
"""Events between two changes of the catalogue."""
CHANGE_TIMEOUT_S = 300.0
GOOD = {200}
BUSY = {200, 429}


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
        target = serve_copy(options.config, folder, start_ray())
        load_s = 60 * options.minutes
        found = asyncio.run(soak(
            target, load_s=load_s, part_s=max(20.0, load_s / 10), deadline_ms=options.deadline_ms
        ))
    command = " ".join(["python -m benchmarks.soak", *sys.argv[1:]])
    result = {"command": command, **circumstances(), **found}
    print(json.dumps(result, indent=2))
    if options.json:
        write_result(result, options.json)
    return int(has_failed(found))


def has_failed(found: Mapping[str, Any]) -> bool:
    """Tell whether a request failed, an event was lost or refused, or a release change did not end
    as it had to.
    """
    events = found["events"]
    failures = [part["failures"] for part in (found["load"], found["overload"], events)]
    refused = [change["refusal"] is not None for change in found["changes"]]
    return any(failures) or events["lost"] > 0 or refused != [False, True, False]


@dataclass(frozen=True, slots=True)
class Change:
    """One release change: from the command until all replicas follow or refuse."""

    release_id: str
    start_s: float
    end_s: float
    refusal: str | None


class Sender:
    """Sends events and remembers which were acknowledged."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.acknowledged: set[str] = set()
        """Event ids."""
        self.failures = 0
        """Events and items that were not stored, and not for a full queue."""
        self.busy = 0

    async def send(self, rate: float) -> None:
        """Send events, `rate` a second, until cancelled."""
        rng = np.random.default_rng(2)
        async with connect(self._target.endpoint) as client:
            for number in itertools.count():
                await asyncio.sleep(1 / rate)
                if number % ITEMS_EVERY == 0:
                    name = f"soak-{number // ITEMS_EVERY % 10}"
                    item = {"item_id": name, "title": f"New {number}"}
                    await self._put(client.put("/v1/items", json={"items": [item]}))
                event = {
                    "event_id": f"soak-{number}", "timestamp_s": int(time.time()), "label": 1,
                    "user_id": str(rng.choice(self._target.user_ids)),
                    "item_id": str(rng.choice(self._target.item_ids)),
                }
                if await self._put(client.post("/v1/events", json={"events": [event]})):
                    self.acknowledged.add(str(event["event_id"]))

    async def _put(self, sending: Awaitable[httpx.Response]) -> bool:
        """Tell whether the one entry of a request was stored; count it if not."""
        try:
            answer = await sending
        except httpx.TransportError:
            self.failures += 1
            return False
        if answer.status_code == 429:
            self.busy += 1
            return False
        found = answer.json() if answer.status_code == 200 else {}
        entries = found.get("events", found.get("items", []))
        is_stored = [each["status"] for each in entries] in (["stored"], ["unchanged"])
        self.failures += not is_stored
        return is_stored

    def lost(self) -> int:
        """Return how many acknowledged events are not in the database."""
        database = open_database(self._target.database_url)
        ids = EVENTS.c.event_id
        with database.connect() as connection:
            kept = rows_of(connection, select(ids), ids, self.acknowledged)
            lost = self.acknowledged - {row.event_id for row in kept}
        database.dispose()
        return len(lost)


async def soak(
    target: Target, *, load_s: float, part_s: float, deadline_ms: int
) -> dict[str, Any]:
    """Return the result: `part_s` each for capacity and overload, `load_s` between them."""
    capacity = await full_answers_per_s(target, part_s)
    copies = await asyncio.to_thread(copy_releases, target)
    sender, clients = Sender(target), Clients(target, deadline_ms)
    sending = asyncio.create_task(sender.send(EVENTS_PER_S))
    changing = asyncio.create_task(change_releases(target, copies, load_s))
    start_s = time.perf_counter()
    replies = await clients.opened(LOAD * capacity, load_s)
    changes = await changing
    overload = await clients.opened(OVERLOAD * capacity, part_s)
    sending.cancel()
    with suppress(asyncio.CancelledError):
        await sending
    before = [reply for reply in replies if reply.due_s < changes[0].start_s]
    return {
        "capacity_per_s": capacity, "deadline_ms": deadline_ms,
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
        "events": {
            "acknowledged": len(sender.acknowledged), "lost": sender.lost(),
            "failures": sender.failures, "busy": sender.busy,
        },
    }


async def full_answers_per_s(target: Target, seconds: float) -> float:
    """Return how many requests of a few clients the language model answers in a second."""
    clients = Clients(target)
    await clients.closed(1, 1.0)        # what is loaded only once
    start_s = time.perf_counter()
    replies = await clients.closed(CLIENTS, seconds)
    full = sum(reply.mode == "full" for reply in replies)
    if full == 0:
        raise ReleaseError("no request was answered `full`: there is no capacity to measure")
    return full / (time.perf_counter() - start_s)


def compared(during: Sequence[Reply], before: Sequence[Reply]) -> dict[str, Any]:
    """Return the latencies during a change, and its 99th percentile over that before the first."""
    found = quantiles([reply.latency_s for reply in during])
    known = quantiles([reply.latency_s for reply in before])
    if not found or not known:
        return {"requests": len(during)}
    return {"requests": len(during), "latency_s": found, "p99_ratio": found["p99"] / known["p99"]}


def copy_releases(target: Target) -> dict[str, str]:
    """Publish what is promoted later; return the folders by name."""
    registry = target.registry
    live = registry.live().release_id
    return {name: copy_release(registry, live, registry, name)
            for name in ("soak-good", "soak-corrupt", "soak-last")}


async def change_releases(
    target: Target, copies: Mapping[str, str], seconds: float
) -> list[Change]:
    """Promote a release after each quarter of the time; the second one is corrupted."""
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
        refusal = str(error).replace(f"{target.registry.root}/", "")      # a folder of this run
    return Change(release_id, start_s, time.perf_counter(), refusal)


def flip_byte(path: Path) -> None:
    """Change one byte in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        [byte] = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


if __name__ == "__main__":
    sys.exit(main())
