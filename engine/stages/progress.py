"""How far a long stage is, in the driver's log.

Of a training: a small file that worker 0 writes and the driver reads. Of rows that come to the
driver: their number.
"""

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from engine import storage

log = logging.getLogger(__name__)

Row = TypeVar("Row")

PERIOD_S = 10.0
"""Shortest time between two writes, and between two lines of the log."""

PERIODS_OF_WAITING = 6
"""Without a step: between two lines that say so."""


class ProgressWriter:
    """Writes {"done", "total"} at most once in PERIOD_S, and at the end."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._written_s = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Tell how many of all steps are done."""
        now_s = time.monotonic()
        if done < total and now_s - self._written_s < PERIOD_S:
            return
        self._written_s = now_s
        storage.write_json(self.uri, {"done": done, "total": total})


@contextmanager
def logged_progress(uri: str, name: str) -> Iterator[None]:
    """Log what is written to `uri` while the block runs; an old file counts as nothing."""
    ended = threading.Event()
    thread = threading.Thread(target=_follow, args=(uri, name, ended), daemon=True)
    before = _read(uri)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if _read(uri) != before:
            log.info("%s: %s", name, describe(_read(uri), 0.0))


def _follow(uri: str, name: str, ended: threading.Event) -> None:
    seen, first, first_s, periods = _read(uri), None, 0.0, 0
    while not ended.wait(PERIOD_S):
        found, periods = _read(uri), periods + 1
        if found is None or found == seen:
            if first is None and periods % PERIODS_OF_WAITING == 0:
                log.info("%s: no step within %.0f s: starting, or waiting for resources", name,
                         periods * PERIOD_S)
            continue
        seen = found
        if first is None:
            first, first_s = found["done"], time.monotonic()
        gained = found["done"] - first
        rate_s = (time.monotonic() - first_s) / gained if gained > 0 else 0.0
        log.info("%s: %s", name, describe(found, rate_s))


def counted(rows: Iterable[Row], total: int, name: str) -> Iterator[Row]:
    """Yield the rows of a stage as they come; log how many there were, at most once in PERIOD_S."""
    start_s = told_s = time.monotonic()
    for done, row in enumerate(rows, start=1):
        yield row
        now_s = time.monotonic()
        if now_s - told_s >= PERIOD_S or (done == total and told_s > start_s):
            told_s = now_s
            log.info("%s: %s", name, describe(
                {"done": done, "total": total}, (now_s - start_s) / done
            ))


def _read(uri: str) -> dict[str, Any] | None:
    if not storage.exists(uri):
        return None
    found: dict[str, Any] = storage.read_json(uri)
    return found


def describe(progress: dict[str, Any] | None, step_s: float) -> str:
    """Return a line of the log; the time left is a guess from the steps seen so far."""
    if progress is None:
        return "not started"
    left = (progress["total"] - progress["done"]) * step_s
    guess = f", about {left:.0f} s left" if left else ""
    return f"step {progress['done']} of {progress['total']}{guess}"
