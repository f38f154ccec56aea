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


def script_command(
    environment: str, script: str, arguments: Sequence[str], *, threads: int
) -> tuple[list[str], dict[str, str]]:
    """Return command and variables that run a script of this folder in its environment.

    Raises ConfigError if the environment is missing.
    """
    python = ENVIRONMENTS / environment / "bin/python"
    if not python.exists():
        raise ConfigError(f"no {python}: run `make cache/peers/{environment}/.installed`")
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(python), str(HERE / script), *arguments]
    return command, {**variables, "OMP_NUM_THREADS": str(threads)}


def run_script(
    environment: str, script: str, out: Path, arguments: Sequence[str], *, threads: int
) -> None:
    """Run a script that writes the file `out`, unless that is there.

    Raises ConfigError with the end of what it said if it fails; then there is no `out`.
    """
    if out.exists():
        return
    draft = out.with_name(f"draft-{out.name}")
    command, variables = script_command(
        environment, script, [*arguments, "--out", str(draft)], threads=threads
    )
    log.info("%s %s", script, " ".join(arguments))
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{script} ended with {done.returncode}: {done.stderr[-2000:]}")
    draft.rename(out)
