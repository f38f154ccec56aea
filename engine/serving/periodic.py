"""Work that a replica repeats while it lives."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)


class Periodic:
    """Repeats some work; a failure is logged and the next time comes all the same."""

    def __init__(self, period_s: float, work: Callable[[], Awaitable[None]]) -> None:
        self._period_s, self._work = period_s, work
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin at once on the running event loop; nothing happens if it has begun."""
        if self._task is None:
            self._task = asyncio.create_task(self._repeat())

    async def _repeat(self) -> None:
        while True:
            try:
                await self._work()
            except Exception as error:  # noqa: BLE001  whatever it is, there is a next time
                log.error("%s: %s: %s", self._work, type(error).__name__, error)
            await asyncio.sleep(self._period_s)
