"""Airflow imports and runs docs/schedules/airflow_dag.py; run by Airflow's own Python.

`make check-airflow`. The night itself is a recorder named `ray`; all else is Airflow's.
"""

import os
import shlex
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

DAG = Path(__file__).resolve().parents[2] / "docs" / "schedules" / "airflow_dag.py"
RECORDER = """#!/bin/sh
{ pwd; printf '%s\\n' "$RAY_AUTH_MODE" "$@"; } > "$RECORD"
"""


def main() -> None:
    """Check the DAG in a folder of its own; print what was found."""
    with tempfile.TemporaryDirectory(prefix="lifelora-airflow-") as name:
        folder = Path(name)
        home = _copy(folder)
        _run(folder, home, _import(folder / "dags"))
    from airflow import __version__

    sys.stdout.write(f"Airflow {__version__}: imported lifelora_nightly and ran it\n")


def _copy(folder: Path) -> Path:
    """Make Airflow's folders, with the DAG for a repository of the test's; return the latter."""
    home = folder / "lifelora"
    for path in (folder / "dags", home / ".venv/bin"):
        path.mkdir(parents=True)
    (folder / "dags" / DAG.name).write_text(DAG.read_text().replace("/opt/lifelora", str(home)))
    ray = home / ".venv/bin/ray"
    ray.write_text(RECORDER)
    ray.chmod(0o755)
    os.environ |= {
        "AIRFLOW_HOME": str(folder), "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
        "RECORD": str(folder / "record"),
    }
    return home


def _import(dags: Path) -> str:
    """Look at what Airflow makes of the file; return its task's command."""
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(dags)
    _agree("import errors", bag.import_errors, {})
    _agree("DAGs", list(bag.dags), ["lifelora_nightly"])
    dag = bag.dags["lifelora_nightly"]
    (night,) = dag.tasks
    _agree("catchup", dag.catchup, False)
    _agree("max_active_runs", dag.max_active_runs, 1)
    _agree("schedule", dag.timetable.expression, "15 2 * * *")
    _agree("retries", night.retries, 2)
    _agree("retry_delay", night.retry_delay, timedelta(minutes=10))
    _agree("a run ends before the next one", night.execution_timeout < timedelta(days=1), True)
    return str(night.bash_command)


def _run(folder: Path, home: Path, told: str) -> None:
    """Run the DAG once, and look at what its worker does."""
    for command in (["db", "migrate"], ["dags", "test", "lifelora_nightly"]):
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *command], capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"airflow {' '.join(command)}: {done.stdout[-3000:]}{done.stderr[-3000:]}")
    place, mode, *words = (folder / "record").read_text().splitlines()
    _agree("working folder", place, str(home))
    _agree("RAY_AUTH_MODE", mode, "token")
    at = words.index("--submission-id") + 1
    _agree("the id is filled in", words[at].startswith("lifelora-2") and "{" not in words[at], True)
    behind = shlex.split(told[told.index("--working-dir"):])
    _agree("what follows the id", words[at + 1:], behind)


def _agree(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        sys.exit(f"{what}: {found!r}, not {wanted!r}")


if __name__ == "__main__":
    main()
