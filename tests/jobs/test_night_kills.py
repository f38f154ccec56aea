"""A night that is killed in its stages ends in the same release as one that is not."""

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import ray

from engine import storage
from engine.releases.registry import Registry
from engine.state.nights import EntryKind
from tests.jobs.conftest import write_config
from tests.jobs.nights import World

STAGES = ("histories", "slates", "crm", "bank", "golden", "release", "exam_report")
LEASE_S = 1.0


@pytest.mark.slow
@pytest.mark.timeout(1200)      # as many starts of the job as stages
def test_killed_in_its_stages_it_ends_in_the_same_release(
    first: World, one_night: World, tmp_path: Path
) -> None:
    [_, whole] = one_night.ledger()
    world = first.copy(tmp_path / "world", lease_s=LEASE_S)
    config = write_config(tmp_path / "config", world.config.settings())
    day = world.days[1]
    command = [
        sys.executable, "-m", "jobs.nightly_update", "--config", str(config),
        "--until", datetime.fromtimestamp(day.end_s, UTC).isoformat(), "--events", day.folder,
    ]
    killed: list[str] = []
    for _ in range(len(STAGES) + 1):
        stage = killed_in_next_stage(command, killed, tmp_path / "night.log")
        live = Registry(world.config.run.registry).live().release_id
        if stage is None:
            break
        assert live == world.base_id
        killed.append(stage)
        time.sleep(2 * LEASE_S)
    assert sorted(killed) == sorted(STAGES)
    assert live == whole.release_id
    kinds = [entry.kind for entry in world.ledger()]
    assert kinds == [EntryKind.OPENED, EntryKind.PROMOTED]
    assert not [name for name in storage.list_folders(world.config.run.root)
                if name.endswith(".claim")]


def killed_in_next_stage(command: list[str], killed: list[str], log: Path) -> str | None:
    """Run the night and kill it as soon as it writes one of STAGES that is not among `killed`;
    return the stage, or None if the night ended.
    """
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stderr=output, stdout=subprocess.DEVNULL
        )
    while process.poll() is None:
        lines = [line.split() for line in log.read_text().splitlines() if ": writing" in line]
        found = {line[1].rstrip(":") for line in lines} & set(STAGES) - set(killed)
        if found:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return found.pop()
        time.sleep(0.05)
    assert process.returncode == 0, log.read_text()[-2000:]
    return None
