"""A night that is killed in each of its stages ends in the same release as one that is not."""

import os
import signal
import subprocess
import sys
import threading
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

MAX_KILLS = 40
LEASE_S = 1.0


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_in_the_same_release(
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
    for _ in range(MAX_KILLS):
        stage = killed_in_next_stage(command, killed)
        live = Registry(world.config.run.registry).live().release_id
        if stage is None:
            break
        assert live == world.base_id
        killed.append(stage)
        time.sleep(2 * LEASE_S)
    assert {"interactions", "histories", "slates", "crm", "bank", "golden", "exam"} <= set(killed)
    assert live == whole.release_id
    kinds = [entry.kind for entry in world.ledger()]
    assert kinds == [EntryKind.OPENED, EntryKind.PROMOTED]
    assert not [name for name in storage.list_folders(world.config.run.root)
                if name.endswith(".claim")]


def killed_in_next_stage(command: list[str], done: list[str]) -> str | None:
    """Run the night and kill it as soon as it writes a stage that is not among `done`; return the
    stage, or None if the night ended.
    """
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )
    lines: list[str] = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        stage = line.split()[1].rstrip(":") if ": writing" in line else None
        if stage is not None and stage not in done:
            process.send_signal(signal.SIGKILL)
            process.wait()
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return stage
    assert process.wait() == 0, "".join(lines[-20:])
    return None
