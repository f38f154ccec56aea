"""jobs/promote.py and jobs/rollback.py without a running application."""

import json
import socket
import threading
from collections.abc import Iterator
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ReleaseError, ReleaseNotFoundError
from engine.releases.experiment import Experiment
from engine.releases.registry import Live
from jobs import experiment, promote, rollback
from tests.tiny_release import TinyWorld, tiny_world


def details(*changes: int | None) -> dict[str, Any]:
    deployments = [
        {"name": f"D{n}"} if change is None
        else {"name": f"D{n}", "user_config": {"registry": "r", "change": change}}
        for n, change in enumerate(changes)
    ]
    return {
        "applications": {
            "one": {
                "status": "RUNNING",
                "deployed_app_config": {"name": "one", "deployments": deployments},
            },
            "imperative": {"status": "RUNNING", "deployed_app_config": None},
            "going": {"status": "DELETING", "deployed_app_config": {"name": "going"}},
        },
        "http_options": {"port": 8000}, "proxy_location": "HeadOnly", "grpc_options": None,
    }


def test_every_follower_gets_the_same_higher_counter() -> None:
    before = details(None, 3, 5)
    config, change = promote.bumped(deepcopy(before))
    assert change == 6
    [application] = config["applications"]
    assert [each.get("user_config", {}).get("change") for each in application["deployments"]] == [
        None, 6, 6,
    ]
    assert config["http_options"] == {"port": 8000}
    assert "grpc_options" not in config


def test_without_a_follower_there_is_no_change() -> None:
    assert promote.bumped(details(None))[1] == 0


def following(*registries: str) -> dict[str, Any]:
    found = details(*(1 for _ in registries))
    deployments = found["applications"]["one"]["deployed_app_config"]["deployments"]
    for deployment, registry in zip(deployments, registries, strict=True):
        deployment["user_config"]["registry"] = registry
    return found


@pytest.mark.parametrize("registries", [("s3://b/r", "s3://b/r"), ("runs/releases",)])
def test_the_registry_that_an_application_follows_may_be_changed(
    registries: tuple[str, ...],
) -> None:
    promote.check_registry(following(*registries), "s3://b/r")


def test_a_registry_that_no_application_follows_is_left_alone(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--registry", world.registry_root, "--address", "http://127.0.0.1:1"]
    monkeypatch.setattr(promote, "read_details", lambda _: following("s3://b/r"))
    assert promote.main(["r1", *arguments]) == 1
    assert "s3://b/r" in capsys.readouterr().err
    monkeypatch.setattr(promote, "read_details", lambda _: details(None))
    assert promote.main(["r1", *arguments]) == 1
    with pytest.raises(ReleaseNotFoundError):
        world.registry.live()


def test_an_address_without_a_dashboard_changes_nothing(
    world: TinyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    for release_id in ("r1", "r2"):
        world.registry.promote(release_id)
    arguments = ["--registry", world.registry_root, "--address", "http://127.0.0.1:1"]
    assert rollback.main(arguments) == 1
    assert "http://127.0.0.1:1" in capsys.readouterr().err
    assert world.registry.live() == Live("r2", "r1")


def test_a_change_that_does_not_arrive_says_how_to_go_on(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Gone:
        def get_serve_details(self) -> dict[str, Any]:
            return following(world.registry_root)

        def deploy_applications(self, _: object) -> None:
            raise ConnectionError("gone")

    for release_id in ("r1", "r2"):
        world.registry.promote(release_id)
    monkeypatch.setattr(promote, "_client", lambda _: Gone())
    arguments = ["--registry", world.registry_root, "--address", "http://x"]
    assert rollback.main(arguments) == 1
    assert "promote 'r1' again" in capsys.readouterr().err      # a second rollback would undo it
    assert world.registry.live() == Live("r1", "r2")


def test_an_endpoint_that_hangs_up_is_asked_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        def hang_up() -> None:
            server.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        assert promote.read_replicas(f"http://127.0.0.1:{server.getsockname()[1]}") == []
        thread.join()


@pytest.fixture
def world(tmp_path: Path) -> TinyWorld:
    world = tiny_world(tmp_path)
    for seed, release_id in enumerate(("r1", "r2")):
        world.publish(release_id, seed=seed)
    return world


def test_promote_and_rollback_write_live_alone_without_an_address(world: TinyWorld) -> None:
    registry = ["--registry", world.registry_root]
    assert promote.main(["r1", *registry]) == 0
    assert promote.main(["r2", *registry]) == 0
    assert world.registry.live() == Live("r2", "r1")
    assert rollback.main(registry) == 0
    assert world.registry.live() == Live("r1", "r2")


def test_a_relative_registry_starts_from_the_home_folder(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(world.registry_root)
    monkeypatch.setenv("LIFELORA_HOME", str(root.parent))
    registry = ["--registry", root.name]
    assert promote.main(["r1", *registry]) == promote.main(["r2", *registry]) == 0
    assert rollback.main(registry) == 0
    assert world.registry.live() == Live("r1", "r2")


def test_what_cannot_be_promoted_is_an_exit_code(
    world: TinyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = ["--registry", world.registry_root]
    assert promote.main(["none", *registry]) == 1
    assert "'none'" in capsys.readouterr().err
    assert rollback.main(registry) == 1
    assert "error:" in capsys.readouterr().err


def test_an_experiment_is_written_and_ended(
    world: TinyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = ["--registry", world.registry_root]
    world.registry.promote("r1")
    assert experiment.main(["start", "r2", "--share", "0.125", *registry]) == 0
    assert "r2 answers instead of r1: 12.5% of the users" in capsys.readouterr().out
    live = world.registry.live()
    assert live.experiment is not None
    assert live == Live("r1", None, Experiment("r2", 0.125, False, live.experiment.started_s))
    assert experiment.main(["start", "r2", "--share", "1", "--shadow", *registry]) == 0
    assert "in the shadow of r1: 100.0%" in capsys.readouterr().out
    shadow = world.registry.live().experiment
    assert shadow is not None
    assert shadow.is_shadow
    assert experiment.main(["stop", *registry]) == 0
    assert world.registry.live() == Live("r1", None)


@pytest.mark.parametrize(("arguments", "reason"), [
    (["start", "r1", "--share", "0.5"], "'r1' is live"),
    (["start", "r2", "--share", "0"], "share: 0.0 is not above 0"),
    (["start", "none", "--share", "0.5"], "'none' is not in"),
])
def test_an_experiment_that_makes_no_sense_is_an_exit_code(
    world: TinyWorld, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    world.registry.promote("r1")
    assert experiment.main([*arguments, "--registry", world.registry_root]) == 1
    assert reason in capsys.readouterr().err
    assert world.registry.live() == Live("r1", None)


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server whose GET /v1/release walks through the states in the list; the last one stays."""
    states: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state = states.pop(0) if len(states) > 1 else states[0]
            data = json.dumps(state).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", states
    server.shutdown()
    thread.join()
    server.server_close()


def state(*replicas: tuple[str, int, str | None], of: str = "b") -> dict[str, Any]:
    """Return what GET /v1/release says: release, change, and why the release `of` is refused."""
    return {"retriever": [], "scorer": [
        {"release_id": name, "change": change, "experiment": None,
         "refusals": [] if reason is None else [{"release_id": of, "reason": reason}]}
        for name, change, reason in replicas
    ]}


@pytest.fixture(autouse=True)
def _fast_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promote, "POLL_S", 0.01)


def test_waiting_ends_when_the_last_replica_follows(
    endpoint: tuple[str, list[dict[str, Any]]],
) -> None:
    url, states = endpoint
    states += [
        {"retriever": [], "scorer": []}, state(("a", 1, None), ("a", 1, "old reason")),
        state(("b", 2, None), ("a", 1, None)), state(("b", 2, None), ("b", 3, None)),
    ]
    promote.wait_for(url, "b", 2, timeout_s=30)
    assert len(states) == 1


def test_waiting_ends_with_the_reason_of_a_refusal(
    endpoint: tuple[str, list[dict[str, Any]]],
) -> None:
    url, states = endpoint
    states.append(state(("b", 2, None), ("a", 2, "ChecksumError: bank differs")))
    with pytest.raises(ReleaseError, match="bank differs"):
        promote.wait_for(url, "b", 2, timeout_s=30)


def test_waiting_ends_at_the_end_of_its_time(
    endpoint: tuple[str, list[dict[str, Any]]],
) -> None:
    url, states = endpoint
    states.append(state(("b", 2, None), ("a", 1, None)))
    with pytest.raises(ReleaseError, match="1 of 2 replicas"):
        promote.wait_for(url, "b", 2, timeout_s=0.1)


def test_a_challenger_that_is_refused_hinders_no_promotion(
    endpoint: tuple[str, list[dict[str, Any]]],
) -> None:
    url, states = endpoint
    states.append(state(("a", 2, "ChecksumError: bank differs")))       # of b, a challenger
    promote.wait_for(url, "a", 2, timeout_s=30)
    with pytest.raises(ReleaseError, match="bank differs"):
        promote.wait_for(url, "b", 2, timeout_s=30)


def test_a_challenger_that_is_refused_is_told_beside_a_live_release_that_is(
    endpoint: tuple[str, list[dict[str, Any]]],
) -> None:
    url, states = endpoint
    states.append(state(("a", 2, "ChecksumError: bank differs")))
    states[0]["scorer"][0]["refusals"].append({"release_id": "t", "reason": "ReleaseError: old"})
    with pytest.raises(ReleaseError, match="'t' is refused by a replica: ReleaseError: old"):
        promote.wait_for(url, "t", 2, timeout_s=1, has_followed=lambda replica: False)


@pytest.mark.parametrize("release_id", ["b", None])
def test_a_replica_that_cannot_read_what_is_live_refuses_no_release_by_name(
    endpoint: tuple[str, list[dict[str, Any]]], release_id: str | None
) -> None:
    url, states = endpoint
    states.append(state(("a", 2, "ReleaseFormatError: not JSON"), of=""))
    with pytest.raises(ReleaseError, match=r"^a replica cannot read what is live: .* not JSON$"):
        promote.wait_for(url, release_id, 2, timeout_s=30)
