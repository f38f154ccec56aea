"""A night that is killed in its stages ends in the same release as one that is not."""

import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import ray

from engine import storage
from engine.releases.registry import Registry
from engine.state.nights import EntryKind
from jobs import nightly_update
from tests.jobs.conftest import write_config
from tests.jobs.nights import World

STAGES = ("histories", "slates", "crm", "bank", "golden", "release", "exam_report")
LEASE_S = 1.0
IMPORTED = [
    "jobs.nightly_update", "jobs.forget", "engine.stages.adapters", "engine.stages.collected",
    "engine.stages.crm", "engine.stages.evaluation", "engine.stages.judgement",
    "engine.stages.nights_page", "engine.stages.release",
]
"""Of which each of the job's processes begins as a copy: else it spends seconds on imports."""


@pytest.fixture
def processes() -> ForkServerContext:
    """Return what starts processes that have imported the job, but begun nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


@pytest.mark.slow
@pytest.mark.timeout(1200)      # as many starts of the job as stages
def test_killed_in_its_stages_it_ends_in_the_same_release(
    first: World, one_night: World, processes: ForkServerContext, tmp_path: Path
) -> None:
    [_, whole] = one_night.ledger()
    world = first.copy(tmp_path / "world", lease_s=LEASE_S)
    config = write_config(tmp_path / "config", world.config.settings())
    day = world.days[1]
    arguments = [
        "--config", str(config), "--events", day.folder,
        "--until", datetime.fromtimestamp(day.end_s, UTC).isoformat(),
    ]
    killed: list[str] = []
    for _ in range(len(STAGES) + 1):
        stage = killed_in_next_stage(processes, arguments, killed, tmp_path / "night.log")
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


def killed_in_next_stage(
    processes: ForkServerContext, arguments: Sequence[str], killed: Sequence[str], log: Path
) -> str | None:
    """Run the night and kill it as soon as it writes one of STAGES that is not among `killed`;
    return the stage, or None if the night ended.
    """
    log.write_bytes(b"")
    address = ray.get_runtime_context().gcs_address
    process = processes.Process(target=spend_night, args=(arguments, address, str(log)))
    process.start()
    while process.is_alive():
        lines = [line.split() for line in log.read_text().splitlines() if ": writing" in line]
        found = {line[1].rstrip(":") for line in lines} & set(STAGES) - set(killed)
        if found:
            process.kill()
            process.join()
            return found.pop()
        time.sleep(0.05)
    process.join()
    assert process.exitcode == 0, log.read_text()[-2000:]
    return None


def spend_night(arguments: Sequence[str], address: str, log: str) -> None:
    """Run the job, in a process of its own, as `python -m jobs.nightly_update` does."""
    os.environ["RAY_ADDRESS"] = address
    with open(log, "ab") as output:
        os.dup2(output.fileno(), sys.stderr.fileno())
    sys.exit(nightly_update.main(arguments))
