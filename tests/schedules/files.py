"""What the schedules' files say, read once for all their tests."""

import ast
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parents[2]
FOLDER = REPO / "docs" / "schedules"
PAGE = REPO / "docs" / "schedules.md"
CRONTAB = FOLDER / "crontab"
SERVICE, TIMER = FOLDER / "lifelora-nightly.service", FOLDER / "lifelora-nightly.timer"
DAG, RAYCRONJOB = FOLDER / "airflow_dag.py", FOLDER / "raycronjob.yaml"
ENDS = frozenset({">>", "2>&1", "||", "&&", "|", ";"})


@dataclass(frozen=True, slots=True)
class CronLine:
    """A line that runs the night, also one that is commented out."""

    text: str
    schedule: str
    command: str

    @property
    def words(self) -> list[str]:
        """Return program and arguments of the night, without what the shell makes of them."""
        words = shlex.split(self.command)
        words = words[words.index("&&") + 1:]
        return words[:next(at for at, word in enumerate(words) if word in ENDS)]


def cron_lines() -> list[CronLine]:
    found = re.finditer(r"^#?((?:\S+ ){4}\*) (cd .*)$", CRONTAB.read_text(), re.MULTILINE)
    return [CronLine(each[0], each[1], each[2]) for each in found]


def unit(path: Path, *, commented: bool = False) -> dict[str, list[str]]:
    """Return the values of a unit file by "Section.Name", in order.

    commented: those of lines that are commented out, instead.
    """
    section, values = "", dict[str, list[str]]()
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        found = re.match(r"(#?)([A-Za-z]+)=(.*)", line)
        if found and bool(found[1]) == commented:
            values.setdefault(f"{section}.{found[2]}", []).append(found[3])
    return values


def dag_values() -> dict[str, Any]:
    """Return the constants at the top of the DAG's file."""
    found = {}
    for node in ast.parse(DAG.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = ast.literal_eval(node.value)
    return found


def manifest() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return ConfigMap and RayCronJob."""
    config_map, cron_job = yaml.safe_load_all(RAYCRONJOB.read_text())
    return config_map, cron_job


def page_commands() -> list[list[str]]:
    """Return the words of every command of the page that runs the night."""
    text = PAGE.read_text().replace("\\\n", " ")
    lines = re.findall(r"^ {4}(.*nightly_update.*)$", text, re.MULTILINE)
    return [shlex.split(line) for line in lines]


def commands() -> dict[str, list[list[str]]]:
    """Return by file the words of every command that runs the night."""
    _, cron_job = manifest()
    starts = [*unit(SERVICE)["Service.ExecStart"],
              *unit(SERVICE, commented=True)["Service.ExecStart"]]
    return {
        CRONTAB.name: [line.words for line in cron_lines()],
        SERVICE.name: [shlex.split(start) for start in starts],
        DAG.name: [shlex.split(dag_values()["NIGHT"])],
        RAYCRONJOB.name: [shlex.split(cron_job["spec"]["jobTemplate"]["entrypoint"])],
        PAGE.name: page_commands(),
    }
