"""What Prometheus gets, scraped as it does it."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.conftest import Service

pytestmark = pytest.mark.ray

REPO = Path(__file__).resolve().parents[2]
Samples = dict[str, list[tuple[dict[str, str], float]]]


def scrape() -> Samples:
    """Return every sample of the node by its name."""
    [node] = ray.nodes()
    page = httpx.get(
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", trust_env=False
    )
    found: Samples = {}
    for family in text_string_to_metric_families(page.text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def total(samples: Samples, name: str, **labels: str) -> float:
    return sum(
        value for found, value in samples.get(name, [])
        if labels.items() <= found.items() and found.get("application") == "lifelora"
    )


def wait(accept: Callable[[Samples], bool]) -> Samples:
    """Scrape until the samples, which replicas report every 2 s, are as wanted."""
    deadline = time.monotonic() + 60
    while not accept(samples := scrape()):
        assert time.monotonic() < deadline, [
            (name, found, value) for name, values in samples.items() if "lifelora" in name
            for found, value in values
        ]
        time.sleep(0.5)
    return samples


def settled() -> Samples:
    """Return the samples after all that happened before is reported."""
    last: list[Samples] = []

    def is_same_as_before(samples: Samples) -> bool:
        last.append({name: found for name, found in samples.items() if "lifelora" in name})
        return len(last) > 9 and all(each == last[-1] for each in last[-9:])

    return wait(is_same_as_before)


def test_answers_events_batches_prefixes_and_releases_are_counted(service: Service) -> None:
    name = sorted(service.world.histories)[11]
    before = settled()

    def more(samples: Samples, metric: str, **labels: str) -> float:
        return total(samples, metric, **labels) - total(before, metric, **labels)

    for _ in range(3):
        assert service.recommend(user_id=name)["mode"] == "full"
    service.recommend(user_id="nobody at all")
    event = {"user_id": name, "item_id": "1", "timestamp_s": 5, "rating": 5.0}
    service.post("/v1/events", {"events": [
        {**event, "event_id": "m1"}, {**event, "event_id": "m1"}, {**event, "event_id": "seed:1"},
        {**event, "event_id": "m2", "timestamp_s": 6},
    ]})
    for _ in range(2):
        gone = {"item_id": "never there", "is_withdrawn": True}
        service.client.put("/v1/items", json={"items": [gone]})
    live = service.live_id
    held = {"release_id": live, "state": "live"}

    def is_reported(found: Samples) -> bool:
        """Tell whether each replica's next report has come."""
        return (
            more(found, "ray_lifelora_events_total", status="stored") == 2
            and more(found, "ray_lifelora_items_total", status="unchanged") == 1
            and more(found, "ray_lifelora_batch_requests_count") == 3
            and total(found, "ray_lifelora_prefix_bytes") > 0
            and all(total(found, "ray_lifelora_release", **held, deployment=each) == 1
                    for each in ("Retriever", "Scorer"))
        )

    samples = wait(is_reported)
    answers = "ray_lifelora_answers_total"
    assert more(samples, answers, mode="full", release_id=live) == 3
    assert more(samples, answers, mode="popular", release_id=live) == 1
    assert more(samples, "ray_lifelora_events_total", status="duplicate") == 1
    assert more(samples, "ray_lifelora_events_total", status="rejected") == 1
    assert more(samples, "ray_lifelora_stage_ms_count", stage="total") == 4
    assert more(samples, "ray_lifelora_stage_ms_count", stage="llm") == 3
    assert more(samples, "ray_lifelora_gate_entropy_count") == 3
    entropy = more(samples, "ray_lifelora_gate_entropy_sum") / 3
    assert 0 < entropy <= 1
    assert more(samples, "ray_lifelora_prefix_hits_total") == 2
    assert more(samples, "ray_lifelora_prefix_misses_total") == 1


def test_the_dashboard_shows_what_is_exported(service: Service) -> None:
    dashboard = json.loads((REPO / "docs/grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown = {name for query in queries for name in re.findall(r"\bray_[a-z_]+", query)}
    service.client.get("/nowhere")
    # They appear with the first refusal, the first loss and the first shadow.
    seldom = {
        "ray_lifelora_release_refused", "ray_lifelora_impressions_lost_total",
        "ray_lifelora_shadows_total", "ray_lifelora_shadows_lost_total",
    }
    exported = scrape().keys()
    deadline = time.monotonic() + 60
    while not shown - seldom <= exported:
        assert time.monotonic() < deadline, shown - seldom - exported
        time.sleep(0.5)
        exported = scrape().keys()
    ours = {name for name in exported if name.startswith("ray_lifelora")}
    for name in ours:
        assert re.sub(r"_(bucket|count|sum|created)$", "", name) in {
            name.removesuffix("_bucket") for name in shown
        }
