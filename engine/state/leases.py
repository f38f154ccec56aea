"""Leases: what one process may do at a time, a row that runs out unless it is renewed.

Time is the database's, so clocks of several machines do not matter. Should it jump back, by more
than a lease is long, the lease counts as run out: else one of a killed process would hold until
that time comes again. A process that lives renews its lease, which then follows the clock; if
another one was faster, `check` says so.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Engine, Row, delete, select
from sqlalchemy.exc import SQLAlchemyError

from engine.errors import NightRunningError
from engine.state.database import LEASES, lock_leases, now_s, upsert, writing

log = logging.getLogger(__name__)

TTL_S = 120.0
"""How long a lease lasts after its process was killed."""
RENEWALS = 3
"""How often a lease is renewed in that time."""


@contextmanager
def leased(
    database: Engine, name: str, owner: str, *, ttl_s: float = TTL_S
) -> Iterator["Lease"]:
    """Hold a lease, which a thread renews, to the end of the block; `owner` is for people.

    Raises NightRunningError if somebody has it, even an owner of this name.
    """
    lease = Lease(database, name, owner, ttl_s)
    lease.take()
    ended = threading.Event()
    renewer = threading.Thread(target=lease.keep, args=(ended,), name=f"lease {name}", daemon=True)
    renewer.start()
    try:
        yield lease
    finally:
        ended.set()
        renewer.join()
        lease.end()


class Lease:
    """One process's hold of a name; use `leased`."""

    def __init__(self, database: Engine, name: str, owner: str, ttl_s: float) -> None:
        self._database, self._name, self._owner, self._ttl_s = database, name, owner, ttl_s
        self._token = uuid4().hex       # two processes may have one owner's name

    def take(self) -> None:
        """Take the lease if it is free or has run out; NightRunningError if it is neither."""
        with writing(self._database).begin() as connection:
            held = self._held(connection)
            now = now_s(connection)
            if held is not None and not _is_run_out(held, now):
                raise NightRunningError(
                    f"lease {self._name!r} is held by {held.owner!r} until "
                    f"{_format(held.until_s)}; wait until it ends, or until then if it was killed"
                )
            self._write(connection, now)
        log.info("lease %s: taken by %s", self._name, self._owner)

    def check(self) -> None:
        """Renew the lease; NightRunningError if somebody has taken it over.

        Nobody else can take it for `ttl_s` from now on. One that had run out, and that nobody took,
        was not lost.
        """
        with writing(self._database).begin() as connection:
            held = self._held(connection)
            if held is None or held.token != self._token:
                taker = "was removed" if held is None else f"was taken over by {held.owner!r}"
                raise NightRunningError(f"lease {self._name!r} of {self._owner!r} {taker}")
            self._write(connection, now_s(connection))

    def keep(self, ended: threading.Event) -> None:
        """Renew the lease until `ended`, or until it is lost."""
        while not ended.wait(self._ttl_s / RENEWALS):
            try:
                self.check()
            except NightRunningError as error:
                log.error("%s", error)
                return
            except SQLAlchemyError as error:        # there is a next time, or `check` fails
                log.warning("lease %s: not renewed: %s", self._name, error)

    def end(self) -> None:
        """Let others have the lease, if they have not got it; it runs out where that fails."""
        try:
            with writing(self._database).begin() as connection:
                lock_leases(connection)
                connection.execute(delete(LEASES).where(LEASES.c.token == self._token))
        except SQLAlchemyError as error:
            log.error("lease %s: not ended, it runs out: %s", self._name, error)
        else:
            log.info("lease %s: ended by %s", self._name, self._owner)

    def _held(self, connection: Connection) -> Row[Any] | None:
        """Return the row, which nobody else changes before this transaction ends."""
        lock_leases(connection)
        return connection.execute(select(LEASES).where(LEASES.c.name == self._name)).one_or_none()

    def _write(self, connection: Connection, now: float) -> None:
        row = {
            "name": self._name, "owner": self._owner, "token": self._token, "ttl_s": self._ttl_s,
            "until_s": now + self._ttl_s,
        }
        values = [name for name in row if name != "name"]
        connection.execute(upsert(self._database, LEASES, "name", replaced=values), row)


def _is_run_out(held: Row[Any], now: float) -> bool:
    """Tell whether a lease's time is over, or so far ahead that the clock has jumped back."""
    return not now < held.until_s <= now + 2 * held.ttl_s


def _format(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="seconds")
