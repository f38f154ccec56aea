"""Subjects that take turns in one run -> work per CPU-second and per second, and ratios.

The machine is shared: a figure of one subject means little, the ratio of two that alternated more.
CPU time is that of this process with all its threads.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.code_version import code_version


@dataclass(frozen=True, slots=True)
class Lap:
    """One turn of one subject."""

    work: float
    cpu_s: float
    wall_s: float


def race(subjects: Mapping[str, Callable[[], float | Lap]], rounds: int) -> dict[str, list[Lap]]:
    """Let every subject run once to warm up, then `rounds` times, each second round backwards.

    A subject does its work and returns how much it was (tokens, rows), or a lap of its own
    measuring if it works in another process.
    """
    laps: dict[str, list[Lap]] = {name: [] for name in subjects}
    for number in range(rounds + 1):
        names = list(subjects) if number % 2 else list(subjects)[::-1]
        for name in names:
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            done = subjects[name]()
            lap = done if isinstance(done, Lap) else Lap(
                done, time.process_time() - cpu_s, time.perf_counter() - wall_s
            )
            if number:
                laps[name].append(lap)
    return laps


def summarise(laps: Mapping[str, list[Lap]], against: str, unit: str) -> dict[str, Any]:
    """Return each subject's median rates and its ratio to `against`, round by round."""
    found: dict[str, Any] = {}
    for name, own in laps.items():
        ratios = [
            (mine.work / mine.cpu_s) / (other.work / other.cpu_s)
            for mine, other in zip(own, laps[against], strict=True)
        ]
        found[name] = {
            f"{unit}_per_cpu_s": statistics.median(lap.work / lap.cpu_s for lap in own),
            f"{unit}_per_wall_s": statistics.median(lap.work / lap.wall_s for lap in own),
            f"ratio_to_{against}": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)], "rounds": len(own),
        }
    return found


def write_result(result: Mapping[str, Any], path: str | Path) -> None:
    """Write a result file, or what there is of it so far."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(result, indent=2) + "\n")


def circumstances() -> dict[str, Any]:
    """Return commit, versions and machine of a result."""
    return {
        "commit": code_version(), "torch": torch.__version__, "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
