"""How every job ends: with 0, or with 1 and a line that says why."""

import sys
from collections.abc import Callable
from typing import ParamSpec

from engine.errors import EngineError

P = ParamSpec("P")


def exit_code(job: Callable[P, int | None], *args: P.args, **kwargs: P.kwargs) -> int:
    """Run a job; return its exit code, or the one that it returns itself.

    An EngineError is told in one line; any other exception is a bug and passes.
    """
    try:
        return job(*args, **kwargs) or 0
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
