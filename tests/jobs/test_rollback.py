"""What is made live by hand is in the ledger, and the next night goes on from it."""

import logging
from pathlib import Path

import pytest

from engine import storage
from engine.config import DEFAULT_STATE, database_at_home
from engine.releases.registry import Live, Registry
from engine.state.database import open_database
from engine.state.nights import Entry, EntryKind, append, entries, watermark_of
from jobs import nightly_update, promote, rollback

FACTS = {
    "inputs": {}, "config": {}, "base_model": {"name": "tiny", "files": {}}, "data_window": {},
    "crm_key": "c", "mixing": "", "gate": "", "scope": "", "metrics": {},
}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Return three releases; two nights made the last two, of which the later one is live."""
    monkeypatch.setenv("LIFELORA_HOME", str(tmp_path))
    registry = Registry(str(tmp_path / "releases"))
    storage.write_json(str(tmp_path / "fusion.json"), {})
    for release_id in ("base", "one", "two"):
        registry.publish(release_id, {"fusion.json": str(tmp_path / "fusion.json")}, FACTS)
        registry.promote(release_id)
    return registry


def _spend_nights(url: str) -> None:
    database = open_database(url)
    for parent, release_id, since_s, until_s in (("base", "one", 0, 10), ("one", "two", 10, 20)):
        opened = append(database, Entry(
            EntryKind.OPENED, parent, release_id, since_s, until_s, detail={"events": None}
        ))
        append(database, opened.ended(EntryKind.PROMOTED, (), {}))
    database.dispose()


def _ledger(url: str) -> list[tuple[str, str, str | None]]:
    database = open_database(url)
    found = [(each.kind.value, each.parent_id, each.release_id) for each in entries(database)]
    database.dispose()
    return found


def test_after_a_rollback_the_next_night_goes_on_from_the_older_release_with_all_since(
    registry: Registry, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    _spend_nights(url)
    assert rollback.main(["--registry", registry.root, "--state", url]) == 0
    assert registry.live() == Live("one", "two")
    assert _ledger(url)[-1] == ("rolled_back", "two", "one")
    database = open_database(url)
    try:
        assert watermark_of(database, "one") == 10
        opened = nightly_update.open_night(registry, database, 30, None)
    finally:
        database.dispose()
    assert (opened.parent_id, opened.since_s, opened.until_s) == ("one", 10, 30)


def test_a_second_rollback_and_a_promotion_by_hand_are_told_once(
    registry: Registry, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    _spend_nights(url)
    options = ["--registry", registry.root, "--state", url]
    assert rollback.main(options) == rollback.main(options) == 0
    assert promote.main(["base", *options]) == promote.main(["base", *options]) == 0
    assert _ledger(url)[4:] == [
        ("rolled_back", "two", "one"), ("rolled_back", "one", "two"), ("promoted", "two", "base"),
    ]


def test_the_services_database_is_told_if_its_nights_made_one_of_the_releases(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    url, options = database_at_home(DEFAULT_STATE), ["--registry", registry.root]
    assert rollback.main(options) == 0
    assert "there is no database" in caplog.text
    open_database(url).dispose()
    assert rollback.main(options) == 0
    assert "knows neither" in caplog.text
    assert _ledger(url) == []
    _spend_nights(url)
    assert rollback.main(options) == 0
    assert _ledger(url)[4:] == [("rolled_back", "two", "one")]


def test_a_ledger_that_cannot_be_written_stops_no_rollback(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.db").write_bytes(b"no database" * 100)
    for state in ("sqlite:///absent.db", f"sqlite:///{tmp_path}/broken.db", "nonsense"):
        assert rollback.main(["--registry", registry.root, "--state", state]) == 0
        assert "does not tell of this" in caplog.text
        caplog.clear()
    assert registry.live() == Live("one", "two")
