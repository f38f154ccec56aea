"""Other libraries, each in a virtual environment of its own: their pins never touch ours."""

import logging
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from engine.errors import ConfigError

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
ENVIRONMENTS = Path("cache/peers")


def run_script(environment: str, script: str, arguments: Sequence[str], *, threads: int) -> None:
    """Run a script of this folder in `cache/peers/<environment>`.

    Raises ConfigError if the environment is missing (`make cache/peers/<environment>`) or if the
    script fails, with the end of what it said.
    """
    python = ENVIRONMENTS / environment / "bin/python"
    if not python.exists():
        raise ConfigError(f"no {python}: run `make cache/peers/{environment}/.installed`")
    command = [str(python), str(HERE / script), *arguments]
    log.info("%s %s", script, " ".join(arguments))
    alone = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        command, env={**alone, "OMP_NUM_THREADS": str(threads)}, capture_output=True, text=True,
        check=False,
    )
    if done.returncode:
        raise ConfigError(f"{script} ended with {done.returncode}: {done.stderr[-2000:]}")
