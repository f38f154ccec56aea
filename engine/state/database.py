"""Connection and tables: database URL -> engine whose schema is up to date.

    events        event_id, user_id, item_id, timestamp_s, rating, label, received_s, request_id
    deletions     user_id, deleted_s
    impressions   request_id, user_id, release_id, mode, asked_s, items, shadow_of
    items         item_id, title, fields, is_withdrawn, first_revision, text_revision, revision
    item_vectors  item_id, encoder, text_revision, vector
    profiles      user_id, fields
    leases        name, owner, token, ttl_s, until_s
    nights        night_id, opened_id, kind, at_s, parent_id, release_id, since_s, until_s, reasons,
                  detail

The only file that knows the dialect. SQLite serves one machine (WAL, synchronous=FULL: a commit is
on disk before it returns); PostgreSQL serves a cluster.
"""

import fcntl
import logging
import re
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    JSON,
    URL,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    Select,
    SmallInteger,
    String,
    Table,
    create_engine,
    event,
    make_url,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError
from sqlalchemy.sql.dml import Insert

from engine.errors import ConfigError

log = logging.getLogger(__name__)

Value = TypeVar("Value")

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_MS = 30_000
"""How long a SQLite writer waits for another."""
MIGRATION_LOCK = 7_251_604_189
"""PostgreSQL advisory lock of those who migrate."""
DELETION_LOCK = 7_251_604_190
"""PostgreSQL advisory lock of those who store events (shared) and who delete a user (alone)."""
CATALOGUE_LOCK = 7_251_604_191
"""PostgreSQL advisory lock of those who change items: revisions are visible in their order."""
LEASE_LOCK = 7_251_604_192
"""PostgreSQL advisory lock of those who take, renew or end a lease."""
MAX_ROWS = 500
"""Values, or rows, of one statement: SQLite and PostgreSQL bound the number of parameters."""
_one_migration = threading.Lock()      # Alembic keeps its context in module globals

BYTE_ORDER = String().with_variant(postgresql.TEXT(collation="C"), "postgresql")
"""Text compared by code point in both databases, as Python does: ties break as in training."""

METADATA = MetaData()

EVENTS = Table(
    "events", METADATA,
    Column("event_id", BYTE_ORDER, primary_key=True),
    Column("user_id", BYTE_ORDER, nullable=False),
    Column("item_id", BYTE_ORDER, nullable=False),
    Column("timestamp_s", BigInteger, nullable=False),
    Column("rating", Float(53)),
    Column("label", SmallInteger, nullable=False),
    Column("received_s", BigInteger, nullable=False),
    Column("request_id", BYTE_ORDER),
    Index("events_of_user", "user_id", "timestamp_s", "item_id", "event_id"),
    Index("events_by_receipt", "received_s"),
)

DELETIONS = Table(
    "deletions", METADATA,
    Column("user_id", BYTE_ORDER, primary_key=True),
    Column("deleted_s", BigInteger, nullable=False),
)

IMPRESSIONS = Table(
    "impressions", METADATA,
    Column("request_id", BYTE_ORDER, primary_key=True),
    Column("user_id", BYTE_ORDER),
    Column("release_id", String, nullable=False),
    Column("mode", String, nullable=False),
    Column("asked_s", BigInteger, nullable=False),
    Column("items", JSON, nullable=False),
    Column("shadow_of", BYTE_ORDER),
    Index("impressions_of_user", "user_id"),
    Index("impressions_by_time", "asked_s"),
)

ITEMS = Table(
    "items", METADATA,
    Column("item_id", BYTE_ORDER, primary_key=True),
    Column("title", String),
    Column("fields", JSON, nullable=False),
    Column("is_withdrawn", Boolean, nullable=False),
    Column("first_revision", BigInteger, nullable=False),
    Column("text_revision", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Index("items_by_revision", "revision"),
)

ITEM_VECTORS = Table(
    "item_vectors", METADATA,
    Column("item_id", BYTE_ORDER, primary_key=True),
    Column("encoder", String, primary_key=True),
    Column("text_revision", BigInteger, nullable=False),
    Column("vector", LargeBinary, nullable=False),
)

PROFILES = Table(
    "profiles", METADATA,
    Column("user_id", BYTE_ORDER, primary_key=True),
    Column("fields", JSON, nullable=False),
)

LEASES = Table(
    "leases", METADATA,
    Column("name", String, primary_key=True),
    Column("owner", String, nullable=False),
    Column("token", String, nullable=False),
    Column("ttl_s", Float(53), nullable=False),
    Column("until_s", Float(53), nullable=False),
)

NIGHTS = Table(
    "nights", METADATA,
    Column("night_id", Integer, primary_key=True),
    Column("opened_id", Integer),
    Column("kind", String, nullable=False),
    Column("at_s", BigInteger, nullable=False),
    Column("parent_id", String, nullable=False),
    Column("release_id", String),
    Column("since_s", BigInteger),
    Column("until_s", BigInteger),
    Column("reasons", JSON, nullable=False),
    Column("detail", JSON, nullable=False),
    sqlite_autoincrement=True,
)
"""Append-only: triggers refuse to change or remove a row."""


def open_database(url: str) -> Engine:
    """Connect and bring the schema up to date; any number of processes may do so at once.

    Raises ConfigError if the URL is neither SQLite's (with a file) nor PostgreSQL's.
    """
    engine = connect(url)
    with _one_migration, _migrating(engine) as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return engine


def open_existing(url: str) -> Engine:
    """Connect to a database that a service of this version opened, leaving the schema as it is.

    Raises ConfigError if there is none, or if its service is of another version.
    """
    shown = _parse(url).render_as_string()      # without a password
    if not database_exists(url):
        raise ConfigError(f"no service has run on database {shown!r}")
    engine = connect(url)
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    wanted = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    if found == wanted:
        return engine
    engine.dispose()
    if found is None:
        raise ConfigError(f"no service has run on database {shown!r}")
    raise ConfigError(
        f"database {shown!r} has revision {found!r}, this version reads {wanted!r}: its service "
        "must be of the same version"
    )


def database_exists(url: str) -> bool:
    """Tell whether a SQLite file is there; a server is asked when it is opened.

    Raises ConfigError if the URL is none.
    """
    parsed = _parse(url)
    is_file = parsed.get_backend_name() == "sqlite"
    return not is_file or Path(str(parsed.database)).expanduser().is_file()


def writing(engine: Engine) -> Engine:
    """Return the engine for transactions that write: SQLite takes its write lock at the start.

    A transaction that reads first and writes later could otherwise fail when another one commits.
    """
    return engine.execution_options(write=True)


def snapshot(engine: Engine) -> Engine:
    """Return the engine for transactions whose statements all see one state of the database.

    SQLite's always do. Nobody who writes waits for them.
    """
    is_sqlite = engine.dialect.name == "sqlite"
    return engine if is_sqlite else engine.execution_options(isolation_level="REPEATABLE READ")


def upsert(
    engine: Engine, table: Table, *key: str, replaced: Sequence[str] = (), newer: str | None = None
) -> Insert:
    """Return INSERT in this dialect; a row whose key is there keeps all but `replaced`, and all
    where its column `newer` is ahead.
    """
    is_sqlite = engine.dialect.name == "sqlite"
    insert = sqlite.insert(table) if is_sqlite else postgresql.insert(table)
    if not replaced:
        return insert.on_conflict_do_nothing(index_elements=key)
    return insert.on_conflict_do_update(
        index_elements=key, set_={name: insert.excluded[name] for name in replaced},
        where=None if newer is None else table.c[newer] <= insert.excluded[newer],
    )


def rows_of(
    connection: Connection, rows: Select[Any], key: Column[Any], values: Collection[str]
) -> Iterator[Row[Any]]:
    """Yield the selected rows whose key is one of the values, in any order, each row once."""
    for some in batches(list(dict.fromkeys(values))):
        yield from connection.execute(rows.where(key.in_(some)))


def batches(values: Sequence[Value]) -> Iterator[Sequence[Value]]:
    """Yield as many at a time as one statement may have."""
    for start in range(0, len(values), MAX_ROWS):
        yield values[start : start + MAX_ROWS]


def lock_to_store(connection: Connection) -> None:
    """Keep deletions of users waiting until this transaction has stored what is theirs."""
    _lock(connection, DELETION_LOCK, "pg_advisory_xact_lock_shared")


def lock_to_delete(connection: Connection) -> None:
    """Wait until no transaction stores events, and let none begin before this one ends."""
    _lock(connection, DELETION_LOCK)


def lock_catalogue(connection: Connection) -> None:
    """Let no other transaction change items before this one ends."""
    _lock(connection, CATALOGUE_LOCK)


def lock_leases(connection: Connection) -> None:
    """Let no other transaction take, renew or end a lease before this one ends."""
    _lock(connection, LEASE_LOCK)


def now_s(connection: Connection) -> float:
    """Return the database's time, the same for all who use it, in seconds since 1970."""
    if connection.dialect.name == "sqlite":
        return time.time()
    return float(connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())")) or 0)


def _lock(connection: Connection, key: int, function: str = "pg_advisory_xact_lock") -> None:
    """Lock on PostgreSQL; SQLite has one writer at a time."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT {function}(:key)"), {"key": key})


def connect(url: str) -> Engine:
    """Connect, leaving the schema as it is. Raises as `open_database`."""
    parsed = _parse(url)
    if parsed.get_backend_name() == "postgresql":
        return create_engine(
            parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True,
            isolation_level="READ COMMITTED",   # who waited for a lock sees what was committed
            hide_parameters=True,           # an error must not tell whose rows they were
        )
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        raise ConfigError(
            f"database {parsed.render_as_string()!r} is not supported; "
            "use sqlite:///folder/file.db or postgresql://user@host/name"
        )
    file = Path(str(parsed.database)).expanduser().resolve()
    file.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        parsed.set(drivername="sqlite+pysqlite", database=str(file)),
        connect_args={"timeout": BUSY_TIMEOUT_MS / 1000}, hide_parameters=True,
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _parse(url: str) -> URL:
    try:
        return make_url(url)
    except (ArgumentError, ValueError) as error:        # ValueError: the port is no number
        shown = re.sub(r"//.*@", "//...@", url)         # who reads this need not know the password
        raise ConfigError(f"database URL {shown!r} is not valid: {error}") from None


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None      # the driver begins too late; see _begin_sqlite
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA secure_delete = ON")     # what is deleted is overwritten
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextmanager
def _migrating(engine: Engine) -> Iterator[Connection]:
    """Yield a connection in a transaction that no other process migrates in."""
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
            yield connection
        return
    with Path(f"{engine.url.database}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _use_wal(engine)
        with writing(engine).begin() as connection:
            yield connection


def _use_wal(engine: Engine) -> None:
    """Switch the file to WAL once; outside a transaction, and alone under the lock."""
    raw = engine.raw_connection()
    try:
        raw.cursor().execute("PRAGMA journal_mode = WAL")
    finally:
        raw.close()
