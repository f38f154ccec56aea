"""Releases compared on what they answered: no model, no Ray."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import Engine

from engine import storage
from engine.state.database import open_database
from engine.state.events import Event, append
from engine.state.impressions import Impression, ShownItem, record
from jobs import evaluate
from tests.serve_config import local_serve_config

REPO = Path(__file__).resolve().parents[2]
DAY_S = 86_400
START_S = 1_793_491_200         # 1 November 2026


@dataclass(frozen=True)
class Service:
    """What a service left."""

    folder: Path
    database: Engine
    serve_config: str

    def run(self, *options: str) -> int:
        return evaluate.main(["--answers", "--serve-config", self.serve_config, *options])

    def report(self, *options: str) -> Any:
        assert self.run("--json", str(self.folder / "out.json"), *options) == 0
        return json.loads((self.folder / "out.json").read_text())


def write_serve_config(folder: Path, database_url: str) -> str:
    serve = local_serve_config(str(folder / "releases"), database_url=database_url)
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(serve))
    return str(path)


def answered(
    user_id: str | None, release_id: str, asked_s: int, items: str = "xyz",
    shadow_of: str | None = None,
) -> Impression:
    request_id = f"{user_id}-{release_id}-{asked_s}"
    shown = [ShownItem(item, 1.0) for item in items]
    return Impression(request_id, user_id, release_id, "full", asked_s, shown, shadow_of)


def liked(user_id: str, timestamp_s: int, item_id: str, label: int = 1) -> Event:
    return Event(f"{user_id}-{timestamp_s}", user_id, item_id, timestamp_s, None, label)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Ann has answers of `new`, Bob of `old`, both twice; every first one is followed by a like."""
    storage.write_json(
        str(tmp_path / "releases/live.json"), {"release_id": "old", "previous_id": None}
    )
    url = f"sqlite:///{tmp_path}/state.db"
    database = open_database(url)
    for user_id, release_id, item in (("ann", "new", "x"), ("bob", "old", "y")):
        record(database, [answered(user_id, release_id, START_S),
                          answered(user_id, release_id, START_S + DAY_S)])
        append(database, [liked(user_id, START_S + 60, item),
                          liked(user_id, START_S + DAY_S + 60, "q", 0)])
    yield Service(tmp_path, database, write_serve_config(tmp_path, url))
    database.dispose()


def test_two_releases_are_compared_on_what_followed_their_answers(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    record(service.database, [answered(None, "new", START_S)])
    found = service.report("--release", "new", "--against", "live", "--start", "2026-11-01",
                           "--end", "2026-11-03", "--horizon-hours", "1")
    assert (found["start_s"], found["end_s"], found["horizon_s"], found["num_users"]) == (
        START_S, START_S + 2 * DAY_S, 3600, 2)
    new, old = found["releases"]
    assert (new["release_id"], new["num_answers"], new["num_guests"]) == ("new", 2, 1)
    assert {name: new["metrics"][name]["value"] for name in ("liked", "disliked", "mrr")} == {
        "liked": 0.5, "disliked": 0.5, "mrr": 1}
    assert (old["release_id"], old["metrics"]["mrr"]["value"]) == ("old", 0.5)
    assert found["difference"]["metrics"]["mrr"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert found["overlap"] is None
    printed = capsys.readouterr().out
    assert "from 2026-11-01T00:00:00Z until 2026-11-03T00:00:00Z" in printed
    assert "new minus old" in printed
    assert "mrr +0.5000 [+0.5000, +0.5000]" in printed
    assert "left out: answers to guests 1, shadows whose given answer is not kept 0" in printed


def test_a_shadow_is_compared_on_the_same_requests(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    shadows = [answered("bob", "new", START_S, "yxw", f"bob-old-{START_S}"),
               answered("bob", "new", START_S + 1, "yxw", "forgotten")]
    record(service.database, shadows)
    found = service.report("--release", "old", "--against", "new", "--end", "2026-11-03")
    assert [each["num_orphans"] for each in found["releases"]] == [0, 1]
    assert [each["num_shadows"] for each in found["releases"]] == [0, 1]
    assert found["overlap"]["num_requests"] == 1
    assert found["overlap"]["overlap@10"]["value"] == pytest.approx(2 / 3)
    assert found["difference"]["num_requests"] == 1
    printed = capsys.readouterr().out
    assert "requests that both answered 1" in printed
    assert "old minus new, the 1 requests that both answered" in printed


def test_one_release_is_measured_alone(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    found = service.report("--end", "2026-11-03")
    assert [each["release_id"] for each in found["releases"]] == ["old"]
    assert (found["difference"], found["overlap"], found["num_users"]) == (None, None, 1)
    assert "answers from the oldest until" in capsys.readouterr().out


def test_without_an_end_every_answer_has_had_its_horizon(
    service: Service, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.evaluate.time.time", lambda: START_S + DAY_S + 3600.0)
    found = service.report("--horizon-hours", "1")
    assert found["releases"][0]["num_answers"] == 1
    assert found["is_complete"]
    assert "can still be followed" not in capsys.readouterr().out
    found = service.report("--horizon-hours", "1", "--end", "2026-11-02T00:00:01")
    assert found["releases"][0]["num_answers"] == 2
    assert not found["is_complete"]
    assert "can still be followed by events" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "message"), [
    (["--release", "older"], "release 'older' is kept of this window; those who answered: "
     "'guests' (1), 'new' (2), 'old' (2)"),
    (["--start", "2027-01-01", "--end", "2027-01-02"], "those who answered: nobody"),
    (["--release", "guests"], "of 1, 1 were guests' and 0 shadows"),
    (["--against", "old"], "--against: 'old' is --release itself"),
    (["--start", "2026-11-02", "--end", "2026-11-02"], "is not after --start 2026-11-02T00:00:00Z"),
    (["--end", "tomorrow"], "--end: 'tomorrow' is no date"),
    (["--horizon-hours", "0"], "--horizon-hours: 0 is not above 0"),
    (["--horizon-hours", "nan"], "--horizon-hours: nan is not above 0"),
    (["--horizon-hours", "inf"], "--horizon-hours: inf is not above 0"),
    (["--llm-rows", "10"], "--llm-rows: not with --answers"),
    (["--out", "runs"], "--out: not with --answers"),
    (["--actors", "1"], "--actors: not with --answers"),
    (["--include-seen"], "--include-seen and --exclude-seen: not with --answers"),
    (["--exclude-seen"], "--include-seen and --exclude-seen: not with --answers"),
    (["--serve-config", "nowhere.yaml"], "no Serve config at 'nowhere.yaml'"),
])
def test_wrong_input_ends_with_exit_code_1_and_a_message(
    service: Service, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    record(service.database, [answered(None, "guests", START_S)])
    assert service.run("--end", "2026-11-03", *options) == 1
    assert message in capsys.readouterr().err


def test_what_answers_alone_read_is_refused_with_histories(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(["--histories", "folder", "--horizon-hours", "24"]) == 1
    assert "--horizon-hours: not with --histories" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--answers", "--histories", "folder"]])
def test_one_source_of_evidence_is_asked_for(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(options)
    assert "--histories" in capsys.readouterr().err


def test_no_database_is_made_where_no_service_has_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_serve_config(tmp_path, f"sqlite:///{tmp_path}/state/none.db")
    assert evaluate.main(["--answers", "--release", "a", "--serve-config", config]) == 1
    assert "no service has run on database" in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


def test_neither_models_nor_ray_are_loaded(service: Service) -> None:
    program = (
        "import sys; from jobs import evaluate; status = evaluate.main(sys.argv[1:]); "
        "print(sorted({'torch', 'ray', 'transformers'} & set(sys.modules))); sys.exit(status)"
    )
    command = [sys.executable, "-c", program, "--answers", "--serve-config", service.serve_config,
               "--end", "2026-11-03"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=REPO, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"


def test_the_newest_answers_wait_for_their_horizon_by_the_clock(service: Service) -> None:
    record(service.database, [answered("ann", "fresh", int(time.time()))])
    assert service.run("--release", "fresh") == 1
    assert service.run("--release", "fresh", "--end", "2100-01-01") == 0
