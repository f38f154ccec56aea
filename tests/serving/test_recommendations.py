"""The batch job answers every user as the endpoint does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine import storage
from engine.artifacts import Artifact, open_artifact
from engine.data.schema import RECOMMENDATIONS
from engine.stages.recommendations import Ask
from engine.stages.recommendations import recommend as answer
from jobs import recommend
from tests.serving.conftest import Service, local_config

STRANGER = "nobody"


@pytest.fixture
def serve_config(service: Service, tmp_path: Path) -> str:
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(local_config(service.world, service.database_url, 0)))
    return str(path)


def run(serve_config: str, out: Path, *options: str) -> Artifact:
    assert recommend.main(["--serve-config", serve_config, "--out", str(out), *options]) == 0
    [name] = storage.list_folders(str(out))
    return open_artifact(f"{out}/{name}")


def rows_of(artifact: Artifact) -> dict[str, list[dict[str, Any]]]:
    """Return each user's rows."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for uri in artifact.files("recommendations/"):
        table = storage.read_table(uri)
        assert table.schema == RECOMMENDATIONS
        for row in table.to_pylist():
            rows.setdefault(row["user_id"], []).append(row)
    return rows


def assert_as_answered(rows: list[dict[str, Any]], answer: dict[str, Any]) -> None:
    assert [row["item_id"] for row in rows] == [item["item_id"] for item in answer["items"]]
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    for row, item in zip(rows, answer["items"], strict=True):
        assert row["title"] == item["title"]
        assert row["mode"] == answer["mode"]
        for name in ("score", "crm_score", "llm_score"):
            assert row[name] == pytest.approx(item[name], abs=1e-4), name


def test_everybody_gets_what_the_endpoint_answers(
    service: Service, serve_config: str, tmp_path: Path
) -> None:
    artifact = run(serve_config, tmp_path / "out", "--k", "7")
    artifact.verify()
    found = rows_of(artifact)
    assert set(service.world.histories) <= set(found)
    for user_id, rows in found.items():
        assert_as_answered(rows, service.recommend(user_id=user_id, k=7))
    assert artifact.facts == {"users": len(found), "modes": {"full": len(found)}}
    manifest = artifact.manifest()
    assert manifest["settings"]["release_id"] == service.live_id
    assert service.database_url not in str(manifest)


def test_a_list_of_users_is_answered_once_each_in_its_order_under_filters(
    service: Service, serve_config: str, tmp_path: Path
) -> None:
    known = sorted(service.world.histories)[:2]
    file = tmp_path / "users.txt"
    lines = "\r\n".join([known[1], STRANGER, "", known[0] + " ", known[1]]) + "\n"
    file.write_bytes(lines.encode("utf-8-sig"))         # as a spreadsheet saves it
    genre = service.world.catalogue.fields["genres"][1][0]
    artifact = run(
        serve_config, tmp_path / "out", "--users", str(file), "--k", "4", "--include-seen",
        "--field", f"genres={genre}", "--actors", "2",
    )
    found = rows_of(artifact)
    assert list(found) == [known[1], STRANGER, known[0]]
    assert artifact.facts["modes"] == {"full": 2, "popular": 1}
    for user_id, rows in found.items():
        assert_as_answered(rows, service.recommend(
            user_id=user_id, k=4, filters={"exclude_seen": False, "fields": {"genres": [genre]}}
        ))


def test_parts_and_actors_change_no_answer(
    service: Service, serve_config: str, tmp_path: Path
) -> None:
    serving, registry = recommend.read_serve_config(serve_config)
    ask = Ask(registry, service.live_id, serving, k=3)
    users = sorted(service.world.histories)
    parts = answer(
        str(tmp_path / "parts"), replace(ask, num_actors=2, users_per_part=5), users
    )
    assert len(parts.files("recommendations/")) == -(-len(users) // 5) > 2
    found = rows_of(parts)
    assert list(found) == users
    for user_id, rows in found.items():
        assert_as_answered(rows, service.recommend(user_id=user_id, k=3))


@pytest.mark.parametrize(("options", "message"), [
    (["--k", "0"], "k: 0 is not in 1 to 20"),
    (["--k", "21"], "k: 21 is not in 1 to 20"),
    (["--actors", "0"], "num_actors: 0"),
    (["--release", "absent"], "absent"),
    (["--release", ""], "release id ''"),
    (["--users", "absent.txt"], "no file of user ids at 'absent.txt'"),
    (["--users", "."], "no file of user ids at '.'"),
    (["--field", "genres"], "NAME=VALUE"),
    (["--field", "colour=red"], "no item field 'colour'"),
])
def test_a_wrong_option_ends_with_its_reason_and_writes_nothing(
    serve_config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    options: list[str], message: str,
) -> None:
    out = tmp_path / "out"
    assert recommend.main(["--serve-config", serve_config, "--out", str(out), *options]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_list_that_is_no_text_is_refused(
    serve_config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "users.txt"
    file.write_bytes("Zoë".encode("latin-1"))
    assert recommend.main(["--serve-config", serve_config, "--users", str(file)]) == 1
    assert "is not UTF-8 text" in capsys.readouterr().err


def test_a_list_is_not_answered_from_a_database_without_events(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = f"sqlite:///{tmp_path}/mistyped.db"
    config, users = tmp_path / "serve.yaml", tmp_path / "users.txt"
    config.write_text(yaml.safe_dump(local_config(service.world, empty, 0)))
    users.write_text("u1")
    out = tmp_path / "out"
    assert recommend.main(
        ["--serve-config", str(config), "--users", str(users), "--out", str(out)]
    ) == 1
    error = capsys.readouterr().err
    assert "no event is stored in sqlite" in error
    assert "mistyped.db" in error
    assert not list(out.glob("*/manifest.json"))


def test_an_empty_list_is_an_error_and_no_artifact(
    serve_config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "users.txt"
    file.write_text("\n\n")
    out = tmp_path / "out"
    options = ["--serve-config", serve_config, "--out", str(out), "--users", str(file)]
    assert recommend.main(options) == 1
    assert "no user" in capsys.readouterr().err
    assert not list(out.glob("*/manifest.json"))


@pytest.mark.parametrize("text", [
    "applications: []", "applications: [{deployments: []}]", "- 1",
    "applications: [{args: {threads: 0}, deployments: [{user_config: {registry: x}}]}]",
])
def test_a_serve_config_that_says_no_registry_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    assert recommend.main(["--serve-config", str(path)]) == 1
    assert str(path) in capsys.readouterr().err
