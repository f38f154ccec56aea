"""An empty database: SQLite always, PostgreSQL where LIFELORA_POSTGRES_URL names a server."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from engine.state.database import open_database


def postgres_url() -> str:
    url = os.environ.get("LIFELORA_POSTGRES_URL", "")
    if not url:
        message = "LIFELORA_POSTGRES_URL names no PostgreSQL server"
        if os.environ.get("LIFELORA_REQUIRE_POSTGRES") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return the URL of an empty database of its own."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/state/events.db"
        return
    parsed = make_url(postgres_url()).set(drivername="postgresql+psycopg")
    name = f"test_{uuid.uuid4().hex}"
    server = create_engine(parsed, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield parsed.set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    engine = open_database(database_url)
    yield engine
    engine.dispose()
