"""What is there and what is needed -> what a night may delete; pure functions.

    releases    beyond the newest ones, unless something names them
    folders     stages' outputs that no kept release was made of, older than the last night that
                ended; so are trainings that were not finished, and claims of whoever was killed

A folder of another name is nobody's business. While somebody writes an output, no folder goes: what
a training of many hours has made so far may be older than a night, and nothing names it yet.
"""

import re
from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass

from engine.artifacts import CLAIM

KINDS = (
    "bank", "crm", "crm_examples", "crm_scores", "drop", "evaluation", "exam", "exam_report",
    "fusion", "golden", "histories", "interactions", "item_text", "popularity", "prompts",
    "release_scores", "report", "retrieval", "scores", "slates",
)
"""Of the outputs of trainings and nights."""
TRAINING = "training"
"""The folder of a run that holds what trainings go on from."""
OUTPUT = re.compile(rf"({'|'.join(KINDS)})-[0-9a-f]{{12}}")
FOLDER = re.compile(rf"({TRAINING}/{OUTPUT.pattern}|{OUTPUT.pattern}({re.escape(CLAIM)})?)")

STALLED_S = 7 * 86_400
"""A claim of this age was left by a process that was killed: no stage takes as long."""


@dataclass(frozen=True, slots=True)
class Published:
    """A release of the registry."""

    release_id: str
    created_s: int
    size_bytes: int
    needs: frozenset[str]
    """Folders that it was made of, and those that its histories lie upon."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of the run."""

    name: str
    size_bytes: int
    changed_s: float
    """When its newest file was written."""
    made_of: frozenset[str] = frozenset()
    """Folders that its manifest names as inputs."""


def old_releases(
    published: Iterable[Published], named: Set[str], keep_releases: int
) -> list[Published]:
    """Return the releases, oldest first, that are neither named nor among the newest."""
    by_time = sorted(published, key=lambda each: (each.created_s, each.release_id))
    return [each for each in by_time[:-keep_releases] if each.release_id not in named]


def old_folders(
    folders: Sequence[Folder], kept: Collection[Published], reports: Set[str], *, before_s: float,
    now_s: float,
) -> list[Folder]:
    """Return the folders that go, by name; none while a claim holds.

    `reports` are the comparisons of kept releases; the reports of their trainings stay, too.
    before_s: what has changed since stays.
    """
    if holding_claims(folders, now_s):
        return []
    needed = {*reports, *(name for each in kept for name in each.needs)}
    return sorted((
        each for each in folders
        if FOLDER.fullmatch(each.name) and each.name not in needed and each.changed_s < before_s
        and not _reports_on(each, kept)
    ), key=lambda each: each.name)


def holding_claims(folders: Iterable[Folder], now_s: float) -> list[str]:
    """Return the claims of processes that may still write."""
    return [
        each.name for each in folders
        if each.name.endswith(CLAIM) and each.changed_s > now_s - STALLED_S
    ]


def _reports_on(folder: Folder, kept: Iterable[Published]) -> bool:
    return folder.name.startswith("report-") and any(
        each.needs <= folder.made_of for each in kept
    )
