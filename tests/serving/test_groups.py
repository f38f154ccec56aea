import asyncio
import contextvars
from collections.abc import Coroutine
from functools import partial
from typing import Any

import pytest

from engine.serving.groups import Groups
from engine.serving.periodic import Periodic


class Work:
    """Doubles numbers; waits in each group until told to go on."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.go_on = asyncio.Event()
        self.error: Exception | None = None

    async def run(self, items: list[int]) -> list[int]:
        self.groups.append(items)
        await self.go_on.wait()
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return [2 * item for item in items]


def ask(groups: Groups[int, int], *items: int) -> list[asyncio.Task[int]]:
    return [asyncio.create_task(groups.ask(item)) for item in items]


def do(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


def test_calls_that_wait_while_one_runs_share_the_next() -> None:
    async def test() -> None:
        work = Work()
        groups = Groups(work.run, limit=100)
        asked = ask(groups, 1)
        await asyncio.sleep(0)
        asked += ask(groups, 2, 3, 4, 5)
        await asyncio.sleep(0.01)
        assert work.groups == [[1]]
        assert len(groups) == 4
        work.go_on.set()
        assert await asyncio.gather(*asked) == [2, 4, 6, 8, 10]
        assert work.groups == [[1], [2, 3, 4, 5]]
        assert await groups.ask(7) == 14                # idle again, and not for good

    do(test())


def test_a_group_is_bounded_by_the_sizes_of_its_items() -> None:
    async def test() -> None:
        work = Work()
        work.go_on.set()
        groups = Groups(work.run, limit=5, size=lambda item: item)
        found = await asyncio.gather(*ask(groups, 2, 3, 1, 9, 4, 1))
        assert found == [4, 6, 2, 18, 8, 2]
        assert work.groups == [[2, 3], [1], [9], [4, 1]]

    do(test())


def test_an_error_is_that_of_its_group_alone() -> None:
    async def test() -> None:
        work = Work()
        groups = Groups(work.run, limit=2)
        work.error = OSError("disk full")
        work.go_on.set()
        found = await asyncio.gather(*ask(groups, 1, 2, 3), return_exceptions=True)
        assert [type(each) for each in found] == [OSError, OSError, int]
        assert await groups.ask(4) == 8

    do(test())


@pytest.mark.parametrize("fault", ["cancelled", "too few"])
def test_no_fault_leaves_a_caller_waiting(fault: str) -> None:
    async def test() -> None:
        async def run(items: list[int]) -> list[int]:
            if items == [4]:
                return [8]
            await asyncio.sleep(0)
            if fault == "cancelled":
                raise asyncio.CancelledError
            return [0] * (len(items) - 1)

        groups = Groups(run, limit=2)
        found = await asyncio.gather(*ask(groups, 1, 2, 3), return_exceptions=True)
        assert [type(each) for each in found] == [RuntimeError] * 3
        assert await groups.ask(4) == 8

    do(test())


def test_a_group_runs_in_no_callers_context() -> None:
    caller = contextvars.ContextVar("caller", default="nobody")

    async def test() -> None:
        async def run(items: list[int]) -> list[str]:
            return [caller.get()] * len(items)

        caller.set("ann")
        assert await Groups(run, limit=2).ask(1) == "nobody"

    do(test())


def test_who_leaves_is_not_waited_for_and_takes_nobody_along() -> None:
    async def test() -> None:
        work = Work()
        groups = Groups(work.run, limit=100)
        first, second, third = ask(groups, 1, 2, 3)
        await asyncio.sleep(0.01)
        assert work.groups == [[1, 2, 3]]
        fourth, fifth = ask(groups, 4, 5)
        await asyncio.sleep(0)
        for each in (second, fourth):                   # one of a group that runs, one that waits
            each.cancel()
        await asyncio.sleep(0)
        work.go_on.set()
        assert await asyncio.gather(first, third, fifth) == [2, 6, 10]
        assert work.groups == [[1, 2, 3], [5]]

    do(test())


def test_the_first_may_wait_for_company() -> None:
    async def test() -> None:
        work = Work()
        work.go_on.set()
        groups = Groups(work.run, limit=100, wait_s=1.0)
        first = ask(groups, 1)
        await asyncio.sleep(0.01)
        assert await asyncio.gather(*first, *ask(groups, 2)) == [2, 4]
        assert work.groups == [[1, 2]]

    do(test())


def test_periodic_work_goes_on_after_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        done: list[int] = []

        async def work() -> None:
            done.append(len(done))
            if len(done) == 1:
                raise OSError("the database is away")

        periodic = Periodic(0.001, work)
        periodic.start()
        periodic.start()
        while len(done) < 3:
            await asyncio.sleep(0.001)
        assert done[:3] == [0, 1, 2]

    do(test())
    assert "the database is away" in caplog.text


def test_two_groups_take_turns_and_are_formed_in_theirs() -> None:
    async def run() -> None:
        turn, running, seen = asyncio.Lock(), [], []

        async def work(name: str, items: list[int]) -> list[int]:
            running.append(name)
            assert len(running) == 1
            seen.append((name, list(items)))
            await asyncio.sleep(0.01)
            running.pop()
            return items

        one, other = (Groups(partial(work, name), 10, turn=turn) for name in ("one", "other"))
        first = asyncio.create_task(one.ask(1))
        await asyncio.sleep(0)
        second = asyncio.create_task(other.ask(2))
        left = asyncio.create_task(other.ask(3))
        await asyncio.sleep(0)
        late = asyncio.create_task(other.ask(4))        # while the other group runs
        left.cancel()
        assert await asyncio.gather(first, second, late) == [1, 2, 4]
        assert seen == [("one", [1]), ("other", [2, 4])]

    asyncio.run(run())
