"""For real: MovieLens-100K of a few users, SmolLM2's weights, every job, the HTTP endpoint."""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from sqlalchemy import update

from engine.releases.registry import Registry
from engine.state.database import EVENTS, open_database
from engine.state.histories import COMMIT_MARGIN_S
from jobs import export_adapter, import_data, promote, seed_state
from tests.jobs.nights import LENIENT
from tests.serving.conftest import REPO, Service, local_config

EVERY = 31
"""One user in so many is kept."""

RATED_BY = 8
"""Kept users who must have rated an item, or it is left out with its events."""


def write_sample(source: Path, target: Path) -> Path:
    """Copy 30 users, 185 items and their 1,329 events."""
    target.mkdir()
    events = (source / "ml-100k.inter").read_text().splitlines(keepends=True)
    kept = [line for line in events[1:] if int(line.split("\t")[0]) % EVERY == 0]
    raters = Counter(line.split("\t")[1] for line in kept)
    kept = [line for line in kept if raters[line.split("\t")[1]] >= RATED_BY]
    users, items = ({line.split("\t")[column] for line in kept} for column in (0, 1))
    (target / "ml-100k.inter").write_text("".join([events[0], *kept]))
    for name, ids in (("item", items), ("user", users)):
        rows = (source / f"ml-100k.{name}").read_text().splitlines(keepends=True)
        chosen = [row for row in rows[1:] if row.split("\t")[0] in ids]
        (target / f"ml-100k.{name}").write_text("".join([rows[0], *chosen]))
    return target


@pytest.fixture(scope="module")
def config_file(ml_100k: str, smollm2: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    sample = write_sample(Path(ml_100k), folder / "data")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({
        "run": {"root": str(folder / "run"), "registry": str(folder / "releases")},
        "source": {"format": "recbole", "path": str(sample)},
        "histories": {"num_partitions": 2},
        "slates": {"max_size": 4},
        "base_model": {"cache": str(Path(smollm2).parent)},
        "crm": {"epochs": 1, "lanes": 2, "threads_per_worker": 1},
        "prompt": {"history_size": 4},
        "adapters": {"max_slates": 8, "batch_slates": 4, "threads_per_worker": 2,
                     "learning_rate": 0.02, "gate_learning_rate": 0.02},
        "evaluation": {"validation_rows": 16, "test_rows": 16, "bootstrap_draws": 100},
        "night": {
            "max_slates": 8, "judge_rows": 20, "judge_days": 20_000, "tune_days": 20_000,
            "roles": {"judge": 0.3, "tune": 0.1, "bank": 0.25},
            "promotion": LENIENT,
        },
    }))
    return path


def submit(dashboard: str, *job: str) -> str:
    """Submit a job as a user would; return what it printed."""
    ray = str(Path(sys.executable).with_name("ray"))
    command = [
        ray, "job", "submit", "--address", dashboard, "--working-dir", str(REPO), "--",
        sys.executable, *job,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def release(config_file: Path, ray_local: str, ray_jobs: Any) -> str:
    """Submit the main job as a user would and return the live release."""
    assert import_data.main(["--config", str(config_file)]) == 0
    printed = submit(ray_local, "jobs/train_reclora.py", "--config", str(config_file))
    assert "report:" in printed
    return Registry(str(config_file.parent / "releases")).live().release_id


@pytest.fixture(scope="module")
def endpoint(service: Service, release: str, config_file: Path, smollm2: str) -> Any:
    """Serve the release beside the application that runs already."""
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    database = f"sqlite:///{config_file.parent}/state.db"
    assert seed_state.main(["--config", str(config_file), "--database", database]) == 0
    client = ServeSubmissionClient(service.dashboard)
    before, _ = promote.bumped(client.get_serve_details())
    mine = local_config(service.world, database, 0)["applications"][0]
    mine |= {"name": "real", "route_prefix": "/real"}
    mine["args"] |= {"model_cache": str(Path(smollm2).parent), "threads": 2}
    for deployment in mine["deployments"]:
        if "user_config" in deployment:
            deployment["user_config"] = {
                "registry": str(config_file.parent / "releases"), "change": 1,
            }
    client.deploy_applications({**before, "applications": [*before["applications"], mine]})
    with httpx.Client(base_url=f"{service.url}/real", timeout=120, trust_env=False) as http:
        deadline = time.monotonic() + 180
        while http.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline, http.get("/readyz").text
            time.sleep(0.5)
        yield http, database
    client.deploy_applications(before)


@pytest.mark.slow
def test_five_users_get_recommendations_from_five_different_mixes(
    endpoint: Any, release: str
) -> None:
    http, _ = endpoint
    mixes = set()
    for number in range(1, 6):
        answer = http.post("/v1/recommend", json={
            "user_id": str(number * EVERY), "k": 5, "explain": True,
        }).json()
        assert answer["mode"] == "full"
        assert answer["release_id"] == release
        assert len(answer["items"]) == 5
        assert all(item["title"] for item in answer["items"])
        mixes.add(tuple(round(w, 6) for w in answer["explanation"]["gate_weights"]))
    assert len(mixes) == 5


@pytest.mark.slow
def test_three_posted_events_are_in_the_next_answers_history(endpoint: Any) -> None:
    http, _ = endpoint
    body = {"user_id": str(EVERY), "k": 3}
    first = http.post("/v1/recommend", json=body).json()
    chosen = [item["item_id"] for item in first["items"]]
    events = [
        {
            "event_id": f"e{n}", "user_id": str(EVERY), "item_id": item,
            "timestamp_s": 900_000_000 + n, "rating": 5.0,
        }
        for n, item in enumerate(chosen)
    ]
    stored = http.post("/v1/events", json={"events": events}).json()
    assert [event["status"] for event in stored["events"]] == ["stored"] * 3
    second = http.post("/v1/recommend", json=body).json()
    assert second["history"]["length"] == first["history"]["length"] + 3
    assert [event["item_id"] for event in second["history"]["newest"][:3]] == chosen[::-1]
    assert not set(chosen) & {item["item_id"] for item in second["items"]}


@pytest.mark.slow
def test_a_users_adapter_is_exported(endpoint: Any, config_file: Path, tmp_path: Path) -> None:
    _, database = endpoint
    arguments = [
        "--user", str(EVERY), "--registry", str(config_file.parent / "releases"),
        "--database", database, "--out", str(tmp_path / "adapter"),
        "--model-cache", str(REPO / "cache/models"),
    ]
    assert export_adapter.main(arguments) == 0
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size > 1_000_000
    assert export_adapter.main([*arguments, "--user", "nobody"]) == 1


@pytest.mark.slow
def test_an_exports_relative_paths_start_from_home(
    endpoint: Any, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = config_file.parent
    _, database = endpoint
    assert database == f"sqlite:///{home}/state.db"
    (home / "models").symlink_to(REPO / "cache/models")
    monkeypatch.setenv("LIFELORA_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    assert export_adapter.main([
        "--user", str(EVERY), "--registry", "releases", "--database", "sqlite:///state.db",
        "--out", "adapters/one", "--model-cache", "models",
    ]) == 0
    assert (home / "adapters/one/adapter_config.json").is_file()


def came_a_while_ago(database: str) -> None:
    """Let all events be older than a night's bound leaves out: no test waits for that."""
    engine = open_database(database)
    with engine.begin() as connection:
        earlier = EVENTS.c.received_s - 2 * COMMIT_MARGIN_S
        connection.execute(update(EVENTS).values(received_s=earlier))
    engine.dispose()


@pytest.mark.slow
def test_a_night_learns_what_was_posted_and_the_next_answer_is_its_releases(
    endpoint: Any, ray_local: str, config_file: Path, release: str
) -> None:
    http, database = endpoint
    body = {"user_id": str(EVERY), "k": 5}
    assert http.post("/v1/recommend", json=body).json()["release_id"] == release
    settings = yaml.safe_load(config_file.read_text())
    items = [line.split("\t")[0] for line in
             (Path(settings["source"]["path"]) / "ml-100k.item").read_text().splitlines()[1:]]
    events = [
        {
            "event_id": f"night-{user}-{number}", "user_id": str(user * EVERY),
            "item_id": items[(7 * user + number) % len(items)],
            "rating": float(1 + (user + number) % 5),
            "timestamp_s": 950_000_000 + 10 * number,
        }
        for number in range(12) for user in range(1, 31)
    ]
    for number in range(0, len(events), 30):
        stored = http.post("/v1/events", json={"events": events[number : number + 30]}).json()
        assert {event["status"] for event in stored["events"]} == {"stored"}
    came_a_while_ago(database)

    printed = submit(
        ray_local, "jobs/nightly_update.py", "--config", str(config_file),
        "--set", f"run.state={database}",
        "--set", "adapters.threads_per_worker=1",       # two applications hold a part of the CPUs
        "--address", ray_local, "--endpoint", f"{http.base_url}".rstrip("/"),
    )
    live = Registry(str(config_file.parent / "releases")).live()
    assert live.previous_id == release != live.release_id
    assert f"every replica answers from {live.release_id}" in printed
    answer = http.post("/v1/recommend", json=body).json()
    assert (answer["release_id"], answer["mode"]) == (live.release_id, "full")
    page = (config_file.parent / "run/nights.html").read_text()
    assert live.release_id in page
    assert "promoted" in page
