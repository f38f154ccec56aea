"""jobs/seed_state.py: a run's histories -> the serving database."""

from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from engine import storage
from engine.artifacts import Artifact, make
from engine.data.schema import HISTORIES, items_schema
from engine.state.database import open_database
from engine.state.histories import PastEvent, count_events, newest_events
from jobs import seed_state

ROWS = [
    {"user_id": "ann", "items": [2, 1, 2], "ratings": [4.0, 2.5, 5.0], "labels": [1, 0, 1],
     "timestamps_s": [10, 20, 20]},
    {"user_id": "bob", "items": [3], "ratings": [1.0], "labels": [0], "timestamps_s": [5]},
    {"user_id": "cat", "items": [], "ratings": [], "labels": [], "timestamps_s": []},
]


@pytest.fixture
def histories(root: str) -> Artifact:
    """Two partitions, locally and in a bucket."""

    def write(folder: str) -> dict[str, int]:
        for part, rows in enumerate((ROWS[:1], ROWS[1:])):
            storage.write_table(
                storage.join(folder, f"histories/part-{part:05d}.parquet"),
                pa.Table.from_pylist(rows, schema=HISTORIES),
            )
        storage.write_table(storage.join(folder, "items.parquet"), pa.Table.from_pylist(
            [{"item": n, "item_id": name, "title": name.upper()}
             for n, name in enumerate("abc", start=1)],
            schema=items_schema(()),
        ))
        return {}

    return make(root, "histories", {}, [], write)


def test_histories_are_stored_by_item_id_and_only_once(
    histories: Artifact, database_url: str
) -> None:
    arguments = ["--histories", histories.uri, "--database", database_url]
    assert seed_state.main(arguments) == 0
    assert seed_state.main(arguments) == 0
    database = open_database(database_url)
    assert count_events(database) == 4
    assert newest_events(database, "ann", 9) == [
        PastEvent("b", 10, 4.0, 1), PastEvent("a", 20, 2.5, 0), PastEvent("b", 20, 5.0, 1),
    ]
    assert newest_events(database, "bob", 9) == [PastEvent("c", 5, 1.0, 0)]
    database.dispose()


def test_a_config_names_the_histories_of_its_live_release(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.tiny_release import tiny_world

    world = tiny_world(tmp_path / "world")
    run = str(tmp_path / "run")

    def write(folder: str) -> dict[str, int]:
        storage.write_table(
            storage.join(folder, "histories/part-00000.parquet"), world.histories_table
        )
        storage.write_table(storage.join(folder, "items.parquet"), world.catalogue.to_table())
        return {}

    made = make(run, "histories", {}, [], write)
    world.publish("r1", inputs={"histories": made.key})
    world.registry.promote("r1")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"run": {"root": run, "registry": world.registry_root}}))
    url = f"sqlite:///{tmp_path}/events.db"
    assert seed_state.main(["--config", str(config), "--database", url]) == 0
    assert f"{len(world.sample.events)} events" in capsys.readouterr().out

    world.publish("r2", inputs={"histories": "ffffffffffff"})
    world.registry.promote("r2")
    assert seed_state.main(["--config", str(config), "--database", url]) == 1
    assert "--histories" in capsys.readouterr().err


def test_a_relative_database_is_the_one_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A submitted job works in a copy of the repository that is thrown away."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIFELORA_HOME", str(tmp_path / "home"))
    found: list[str] = []
    monkeypatch.setattr(seed_state, "seed_histories", lambda _, url: found.append(url) or 0)
    assert seed_state.main(["--histories", "h", "--database", "sqlite:///state/x.db"]) == 0
    assert seed_state.main(["--histories", "h", "--database", "postgresql://d/x"]) == 0
    assert found == [f"sqlite:///{tmp_path}/home/state/x.db", "postgresql://d/x"]


def test_a_missing_artifact_is_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/events.db"
    assert seed_state.main(["--histories", str(tmp_path / "none"), "--database", url]) == 1
    assert "manifest.json" in capsys.readouterr().err
