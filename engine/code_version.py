"""Which code made a file: the commit where it is known, else the package's version."""

import os
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = (":!benchmarks/results", ":!docs")
"""What a checkout may have changed and still be the commit's code."""


@cache
def code_version() -> str:
    """Return LIFELORA_COMMIT, or the checkout's commit (with "-dirty" if changed), or the version.

    An image or a job's working directory has no `.git`: set LIFELORA_COMMIT there.
    """
    named = os.environ.get("LIFELORA_COMMIT")
    return named or _checkout() or version("lifelora")


def _checkout() -> str | None:
    if not (ROOT / ".git").exists():
        return None
    commit = _git("describe", "--always")
    if not commit:
        return None
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", *RESULTS)
    return f"{commit}-dirty" if changed else commit


def _git(*arguments: str) -> str | None:
    """Return what git prints; None where it cannot run or refuses."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True,
                              check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
