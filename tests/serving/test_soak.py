"""A minute of the soak on the tiny model; its figures are read for failures and losses alone."""

import asyncio
from typing import Any

import pytest

from benchmarks import live, soak
from benchmarks.live import Reply
from tests.serving.conftest import Service

REPLIES = [Reply(0.0, 0.1 * (1 + number), 200, "full", "r") for number in range(9)]


def test_a_summary_tells_modes_failures_and_latencies() -> None:
    replies = [*REPLIES, Reply(5.0, 9.9, 429), Reply(6.0, 2.0, 0), Reply(7.0, 1.0, 200, "crm")]
    found = live.summary(replies, soak.GOOD)
    assert found["requests"] == 12
    assert found["statuses"] == {"0": 1, "200": 10, "429": 1}
    assert found["modes"] == {"crm": 1 / 12, "full": 9 / 12}
    assert found["failures"] == 2
    assert live.summary(replies, soak.BUSY)["failures"] == 1
    assert found["latency_s"]["p50"] == pytest.approx(0.55)
    slow = [Reply(1.0, 2 * reply.latency_s, 200) for reply in REPLIES]
    assert soak.compared(slow, REPLIES)["p99_ratio"] == pytest.approx(2)
    assert soak.compared([], REPLIES) == {"requests": 0}


@pytest.mark.parametrize(("place", "value"), [
    (("load", "failures"), 1), (("overload", "failures"), 1), (("events", "failures"), 1),
    (("events", "lost"), 1), (("changes", 1, "refusal"), None), (("changes", 2, "refusal"), "why"),
])
def test_whatever_fails_is_a_failure(place: tuple[Any, ...], value: Any) -> None:
    found: Any = {
        "load": {"failures": 0}, "overload": {"failures": 0}, "events": {"failures": 0, "lost": 0},
        "changes": [{"refusal": why} for why in (None, "corrupted", None)],
    }
    assert not soak.has_failed(found)
    inner = found
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    assert soak.has_failed(found)


@pytest.mark.ray
@pytest.mark.slow
def test_a_minute_of_traffic_fails_nobody_and_loses_no_event(service: Service) -> None:
    registry = service.world.registry
    before = service.live_id
    item_ids = service.world.catalogue.item_ids[1:]
    target = live.Target(
        service.url, service.dashboard, registry, service.database_url,
        sorted(service.world.histories), item_ids,
    )
    try:
        found = asyncio.run(soak.soak(target, load_s=30, part_s=8, deadline_ms=2000))
    finally:
        assert service.promote(before) == 0
    assert not soak.has_failed(found), found
    assert found["load"]["requests"] > 20
    assert found["events"]["acknowledged"] > 50
    assert "bank.safetensors" in found["changes"][1]["refusal"]
