import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text

from engine.errors import ConfigError
from engine.state.database import METADATA, open_database, open_existing, writing
from engine.state.events import Event, append
from engine.state.histories import count_events

OPEN = "import sys; from engine.state.database import open_database; open_database(sys.argv[1])"


def test_migrations_make_the_tables_that_the_code_declares(database: Engine) -> None:
    with database.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []


def test_opening_again_keeps_the_events(database: Engine, database_url: str) -> None:
    append(database, [Event("e1", "u", "i", 5, None, 1)])
    again = open_database(database_url)
    assert count_events(again) == 1
    again.dispose()


def test_several_processes_may_open_a_new_database_at_once(database_url: str) -> None:
    commands = [[sys.executable, "-c", OPEN, database_url]] * 4
    running = [subprocess.Popen(each, stderr=subprocess.PIPE, text=True) for each in commands]
    faults = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0] * 4, faults
    engine = open_database(database_url)
    assert count_events(engine) == 0
    engine.dispose()


def test_sqlite_writes_ahead_and_syncs_every_commit(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/events.db")
    with engine.connect() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA synchronous")) == 2      # FULL
        assert connection.scalar(text("PRAGMA busy_timeout")) == 30_000
    engine.dispose()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://h/db", "nonsense",
                                 "postgresql://h:port/db"])
def test_an_unsupported_url_is_refused_by_name(url: str) -> None:
    for open_it in (open_database, open_existing):
        with pytest.raises(ConfigError, match=r"sqlite|mysql|nonsense|h:port"):
            open_it(url)


def test_a_wrong_url_is_told_without_its_password() -> None:
    with pytest.raises(ConfigError, match=r"postgresql://\.\.\.@h:port/db") as raised:
        open_database("postgresql://me:secret@h:port/db")
    assert "secret" not in str(raised.value)


def test_who_only_reads_leaves_a_database_of_another_version_as_it_is(database: Engine) -> None:
    url = database.url.render_as_string(hide_password=False)
    open_existing(url).dispose()
    for revision in ("0001", "9999"):
        with writing(database).begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :it"),
                               {"it": revision})
        with pytest.raises(ConfigError, match=f"revision '{revision}', this version reads"):
            open_existing(url)
        with database.connect() as connection:
            found = connection.scalar(text("SELECT version_num FROM alembic_version"))
        assert found == revision
