"""Calls that wait while one runs share the next: one commit, one forward pass for all of them.

Ray Serve's own batching forms batches from what arrives within a fixed time, also while one runs;
those then queue. Here nothing is formed before it can run, so groups grow with the load, and a call
that finds nobody before it waits for no other (or for `wait_s`).
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Generic, TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")


class Groups(Generic[Item, Found]):
    """Runs a function of several items for callers that have one each; on one event loop."""

    def __init__(
        self, run: Callable[[list[Item]], Awaitable[list[Found]]], limit: int,
        size: Callable[[Item], int] = lambda item: 1, wait_s: float = 0.0,
        turn: AbstractAsyncContextManager[None] | None = None,
    ) -> None:
        """`run` returns one result for each item, in order.

        A group's sizes add up to at most `limit`, unless one item alone is larger. `wait_s`: how
        long the first call waits for company. `turn` is held while a group is formed and runs: a
        lock that other Groups hold, too, lets one run at a time.
        """
        self._run, self._limit, self._size, self._wait_s = run, limit, size, wait_s
        self._turn = nullcontext() if turn is None else turn
        self._waiting: deque[tuple[Item, asyncio.Future[Found]]] = deque()
        self._running: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Return how many items wait for a group."""
        return len(self._waiting)

    async def ask(self, item: Item) -> Found:
        """Return the item's result. An error of `run` is every caller's of its group; what a caller
        who left had asked for is not run.
        """
        future: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None:
            # In no request's context: one that is cancelled would take the others along.
            self._running = asyncio.create_task(self._run_all(), context=contextvars.Context())
        return await future

    async def _run_all(self) -> None:
        try:
            if self._wait_s > 0:
                await asyncio.sleep(self._wait_s)
            while self._waiting:
                async with self._turn:
                    await self._answer(self._next_group())
        finally:
            self._running = None

    def _next_group(self) -> list[tuple[Item, "asyncio.Future[Found]"]]:
        group: list[tuple[Item, asyncio.Future[Found]]] = []
        total = 0
        while self._waiting:
            item, future = self._waiting[0]
            if not future.done():
                total += self._size(item)
                if group and total > self._limit:
                    break
                group.append((item, future))
            self._waiting.popleft()
        return group

    async def _answer(self, group: list[tuple[Item, "asyncio.Future[Found]"]]) -> None:
        if not group:               # all of it left
            return
        try:
            results = await self._run([item for item, _ in group])
            if len(results) != len(group):
                raise RuntimeError(f"{len(results)} results for {len(group)} items")
        except Exception as error:  # noqa: BLE001  it is the callers'
            self._fail(group, error)
            return
        except asyncio.CancelledError:
            self._fail(group, RuntimeError("what the group had asked for was cancelled"))
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return
        for (_, future), result in zip(group, results, strict=True):
            if not future.done():
                future.set_result(result)

    @staticmethod
    def _fail(group: list[tuple[Item, "asyncio.Future[Found]"]], error: Exception) -> None:
        for _, future in group:
            if not future.done():
                future.set_exception(error)
