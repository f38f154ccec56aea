"""The job deletes under the lease of the nights, and says what went."""

import time
from pathlib import Path

import pytest

from engine import storage
from engine.config import load_config
from engine.releases.registry import Registry
from engine.state.database import open_database
from engine.state.leases import leased
from engine.state.nights import Entry, EntryKind, append
from jobs import forget
from jobs.nightly_update import LEASE
from tests.jobs.conftest import write_config
from tests.jobs.test_rollback import FACTS


@pytest.fixture
def config(tmp_path: Path) -> str:
    """Return the settings of a run in which a night has ended; its first release is old."""
    values = {
        "root": str(tmp_path / "run"), "registry": str(tmp_path / "releases"),
        "state": f"sqlite:///{tmp_path}/state.db",
    }
    registry, database = Registry(values["registry"]), open_database(values["state"])
    storage.write_json(str(tmp_path / "fusion.json"), {})
    for release_id in ("a", "b", "c"):
        registry.publish(release_id, {"fusion.json": str(tmp_path / "fusion.json")}, FACTS)
        registry.promote(release_id)
    storage.write_bytes(f"{values['root']}/slates-0123456789ab/a", b"12345")
    time.sleep(1.1)                                 # the ledger counts seconds
    opened = append(database, Entry(EntryKind.OPENED, "b", "c", 0, 1))
    append(database, opened.ended(EntryKind.PROMOTED, (), {}))
    database.dispose()
    return str(write_config(tmp_path, {"run": values, "night": {"keep_releases": 1}}))


def test_a_dry_run_says_what_then_goes(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    registry = Registry(load_config(config).run.registry)
    assert forget.main(["--config", config, "--dry-run"]) == 0
    would = capsys.readouterr().out.splitlines()
    assert registry.list() == ["a", "b", "c"]
    assert would[0].startswith("release a: ")
    assert would[1] == "slates-0123456789ab: 5 bytes"
    assert would[2].startswith("1 releases and 1 folders would go: ")
    assert forget.main(["--config", config]) == 0
    assert capsys.readouterr().out.splitlines() == [
        *would[:2], would[2].replace("would go", "are gone"),
    ]
    assert registry.list() == ["b", "c"]
    assert forget.main(["--config", config]) == 0
    assert capsys.readouterr().out == "0 releases and 0 folders are gone: 0 bytes\n"


def test_nothing_goes_beside_a_night(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = load_config(config).run
    database = open_database(str(run.state))
    try:
        with leased(database, LEASE, "a night"):
            assert forget.main(["--config", config]) == 1
    finally:
        database.dispose()
    assert "held by 'a night'" in capsys.readouterr().err
    assert Registry(run.registry).list() == ["a", "b", "c"]


def test_a_failure_fails_no_night(config: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = load_config(config)
    registry, database = Registry(settings.run.registry), open_database(str(settings.run.state))
    Path(registry.folder("a"), "manifest.json").write_text("{")
    try:
        with leased(database, LEASE, "a night") as lease:
            forget.after_night(registry, settings, database, lease)
            assert "not all was deleted" in caplog.text
            caplog.clear()
        forget.after_night(registry, settings, database, lease)     # somebody else may have it
    finally:
        database.dispose()
    assert "was removed" in caplog.text


def test_it_needs_a_ledger(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert forget.main(["--config", config, "--set", "run.state=null"]) == 1
    assert "run.state is null" in capsys.readouterr().err
    assert forget.main(["--config", config, "--set", "run.state=sqlite:///absent.db"]) == 1
    assert "no service has run" in capsys.readouterr().err
