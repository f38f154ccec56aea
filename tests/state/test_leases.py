"""One at a time, whoever dies and whatever the clock does."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, select

from engine.errors import NightRunningError
from engine.state import leases
from engine.state.database import LEASES, now_s, open_database
from engine.state.leases import Lease, leased

TTL_S = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the database's time, in a list so that a test may move it."""
    moment = [1_800_000_000.0]
    monkeypatch.setattr(leases, "now_s", lambda _connection: moment[0])
    return moment


def lease(database: Engine, owner: str) -> Lease:
    """Return a lease that no thread renews."""
    return Lease(database, "night", owner, TTL_S)


def owners(database: Engine) -> list[str]:
    with database.connect() as connection:
        return list(connection.scalars(select(LEASES.c.owner)))


def test_a_second_owner_is_told_who_holds_the_lease_and_until_when(
    database: Engine, clock: list[float]
) -> None:
    with leased(database, "night", "one", ttl_s=TTL_S) as held:
        held.check()
        for owner in ("two", "one"):
            with pytest.raises(
                NightRunningError,
                match=r"lease 'night' is held by 'one' until 2027-01-15T08:01:40\+00:00",
            ), leased(database, "night", owner, ttl_s=TTL_S):
                pass
        with leased(database, "other", "two", ttl_s=TTL_S):
            assert sorted(owners(database)) == ["one", "two"]
    assert owners(database) == []
    with leased(database, "night", "two", ttl_s=TTL_S):
        assert owners(database) == ["two"]


def test_a_lease_ends_with_its_block_also_when_that_fails(database: Engine) -> None:
    with pytest.raises(ZeroDivisionError), leased(database, "night", "one"):
        raise ZeroDivisionError
    assert owners(database) == []
    assert not [each for each in threading.enumerate() if each.name == "lease night"]


def test_a_lease_that_ran_out_is_taken_and_its_owner_learns_it(
    database: Engine, clock: list[float]
) -> None:
    late, fast = lease(database, "late"), lease(database, "fast")
    late.take()
    clock[0] += TTL_S - 1
    with pytest.raises(NightRunningError, match="'late'"):
        fast.take()
    clock[0] += 1
    fast.take()
    with pytest.raises(NightRunningError, match="lease 'night' of 'late' was taken over by 'fast'"):
        late.check()
    late.end()
    assert owners(database) == ["fast"]
    fast.check()
    fast.end()
    with pytest.raises(NightRunningError, match="lease 'night' of 'fast' was removed"):
        fast.check()


def test_a_lease_that_ran_out_and_that_nobody_took_is_not_lost(
    database: Engine, clock: list[float]
) -> None:
    late, other = lease(database, "late"), lease(database, "other")
    late.take()
    clock[0] += 3 * TTL_S
    late.check()
    with pytest.raises(NightRunningError, match="'late'"):
        other.take()


def test_a_clock_that_jumps_back_holds_nobody_up_for_long(
    database: Engine, clock: list[float]
) -> None:
    killed, other = lease(database, "killed"), lease(database, "other")
    killed.take()
    clock[0] -= TTL_S                   # the wait is longer by the jump, and that is all
    with pytest.raises(NightRunningError, match="'killed'"):
        other.take()
    clock[0] -= 3600
    other.take()
    assert owners(database) == ["other"]


def test_who_lives_through_a_jump_of_the_clock_keeps_the_lease(
    database: Engine, clock: list[float]
) -> None:
    alive, other = lease(database, "alive"), lease(database, "other")
    alive.take()
    for jump_s in (-3600, 7200):
        clock[0] += jump_s
        alive.check()
        with pytest.raises(NightRunningError, match="'alive'"):
            other.take()


def test_a_thread_renews_the_lease(database: Engine) -> None:
    with leased(database, "night", "one", ttl_s=1.5) as held:
        time.sleep(3)
        with pytest.raises(NightRunningError, match="'one'"), leased(database, "night", "two"):
            pass
        held.check()


def test_a_renewal_that_fails_is_tried_again(
    database: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from sqlalchemy.exc import OperationalError

    failures = iter([True])

    def check(self: Lease) -> None:
        if next(failures, False):
            raise OperationalError("UPDATE", {}, Exception("gone"))
        renewed.set()

    renewed = threading.Event()
    monkeypatch.setattr(Lease, "check", check)
    with leased(database, "night", "one", ttl_s=0.3):
        assert renewed.wait(30)
    assert "lease night: not renewed" in caplog.text


def test_of_many_at_once_one_takes_the_lease(database: Engine) -> None:
    barrier = threading.Barrier(8)

    def take(number: int) -> bool:
        barrier.wait(30)
        try:
            lease(database, f"owner {number}").take()
        except NightRunningError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(take, range(8)))
    assert sum(taken) == 1
    assert owners(database) == [f"owner {taken.index(True)}"]


HOLDER = """
import sys, time
from engine.state.database import open_database
from engine.state.leases import leased
with leased(open_database(sys.argv[1]), "night", "killed", ttl_s=float(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_lease_of_a_killed_process_runs_out(database: Engine, database_url: str) -> None:
    ttl_s = 3.0
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, database_url, str(ttl_s)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    time.sleep(ttl_s + 0.5)
    with pytest.raises(NightRunningError, match="'killed'"):
        lease(database, "two").take()           # it lives, and renews
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    killed_s, other = time.monotonic(), lease(database, "two")
    while True:
        try:
            other.take()
            break
        except NightRunningError:
            assert time.monotonic() - killed_s < ttl_s + 30
            time.sleep(0.1)
    assert time.monotonic() - killed_s <= ttl_s + 30
    assert owners(database) == ["two"]


def test_the_time_is_that_of_the_database(database: Engine, database_url: str) -> None:
    again = open_database(database_url)
    with database.connect() as one, again.connect() as two:
        first, second = now_s(one), now_s(two)
    assert 0 <= second - first < 60
    assert abs(second - time.time()) < 60
    again.dispose()
