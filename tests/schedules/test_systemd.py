"""systemd reads service and timer without a complaint."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.schedules.files import SERVICE, TIMER, unit


def _analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        problem = "there is no systemd-analyze (package systemd)"
        if os.environ.get("LIFELORA_REQUIRE_SYSTEMD") == "1":
            pytest.fail(problem)
        pytest.skip(problem)
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Return a folder of the units as they would be for a repository that is there."""
    python = tmp_path / "lifelora/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    for path in (SERVICE, TIMER):
        text = path.read_text().replace("/opt/lifelora", str(tmp_path / "lifelora"))
        (tmp_path / path.name).write_text(text)
    return tmp_path


def _complaints(folder: Path) -> list[str]:
    """Return what `verify` says of our units; it also reads what is installed here."""
    found = _analyze(
        "verify", "--man=no", str(folder / SERVICE.name), str(folder / TIMER.name)
    )
    ours = [line for line in found.stderr.splitlines() if "lifelora-nightly" in line]
    return ours or ([found.stderr] if found.returncode else [])


def test_systemd_accepts_the_units(units: Path) -> None:
    assert _complaints(units) == []


@pytest.mark.parametrize(("right", "wrong", "complaint"), [
    ("MemoryMax=85%", "MemoryMaximum=85%", "Unknown key"),
    ("OnCalendar=*-*-* 02:15:00", "OnCalendar=02:75", "Failed to parse calendar"),
    (".venv/bin/python -m", ".venv/bin/pithon -m", "is not executable"),
    ("Restart=on-failure", "Restart=always", "Restart= set to either always or on-success"),
])
def test_a_fault_in_a_unit_would_be_found(
    units: Path, right: str, wrong: str, complaint: str
) -> None:
    for name in (SERVICE.name, TIMER.name):
        text = (units / name).read_text()
        (units / name).write_text(text.replace(right, wrong))
    assert any(complaint in line for line in _complaints(units))


def test_little_is_exposed(units: Path) -> None:
    found = _analyze(
        "security", "--offline=true", "--threshold=45", "--no-pager", str(units / SERVICE.name)
    )
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr


def test_a_retry_comes_after_the_lease_of_a_killed_night() -> None:
    from engine.state.leases import TTL_S

    (wait,) = unit(SERVICE)["Service.RestartSec"]
    assert wait == "10min"
    assert TTL_S < 600


def test_missed_nights_are_made_up_for() -> None:
    assert unit(TIMER)["Timer.Persistent"] == ["true"]
