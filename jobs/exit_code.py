"""How every job ends: with 0, or with 1 and a line that says why."""

import sys
from collections.abc import Callable
from typing import ParamSpec

from engine.errors import EngineError

P = ParamSpec("P")


def exit_code(job: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> int:
    """Run a job; return its exit code. An EngineError is told in one line; any other is a bug."""
    try:
        job(*args, **kwargs)
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
