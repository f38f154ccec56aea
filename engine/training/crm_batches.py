"""Files of CRM rows -> batches whose content does not depend on the number of processes.

A batch is made of `lanes` independent streams; lane = partition % lanes, and a process reads the
lanes of its own rank. The order within a lane comes from (seed, epoch, lane) alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.models.crm_features import RESIDUALS, ROW_DENSE, USER_DENSE, CRMBatch, CRMRows, join
from engine.types import IntArray

FILES_AT_A_TIME = 4
"""Files of a lane that are mixed with each other, and held in memory."""

LoadRows = Callable[[int], CRMRows]
"""Partition number -> its rows."""


@dataclass(frozen=True, slots=True)
class LanePlan:
    """How the rows of every partition make up the batches of every epoch."""

    row_counts: Sequence[int]
    """Rows of each partition."""
    lanes: int
    batch_size: int
    seed: int

    def groups(self, epoch: int, lane: int) -> list[list[int]]:
        """Return the partitions of a lane in reading order, as groups that are mixed."""
        files = [number for number, rows in enumerate(self.row_counts)
                 if number % self.lanes == lane and rows]
        np.random.default_rng([self.seed, epoch, lane]).shuffle(files)
        return [files[at : at + FILES_AT_A_TIME] for at in range(0, len(files), FILES_AT_A_TIME)]

    def slices(self, epoch: int, lane: int) -> list[tuple[list[int], int]]:
        """Return (group, place in it) for each step of a lane's epoch."""
        rows_per_lane = self.batch_size // self.lanes
        return [
            (group, place)
            for group in self.groups(epoch, lane)
            for place in range(-(-sum(self.row_counts[n] for n in group) // rows_per_lane))
        ]

    def steps(self, epoch: int) -> int:
        """Return the batches of an epoch: a lane that is through leaves its share empty."""
        return max((len(self.slices(epoch, lane)) for lane in range(self.lanes)), default=0)

    def order(self, epoch: int, group: Sequence[int]) -> IntArray:
        """Return the row order of a group."""
        total = sum(self.row_counts[number] for number in group)
        return np.random.default_rng([self.seed, epoch, *group]).permutation(total)


class LaneReader:
    """The stream of one lane; holds one group of files at a time."""

    def __init__(self, plan: LanePlan, lane: int, load: LoadRows) -> None:
        self._plan = plan
        self._lane = lane
        self._load = load
        self._epoch: int | None = None
        self._slices: list[tuple[list[int], int]] = []
        self._group: list[int] = []
        self._order: IntArray | None = None
        self._rows: CRMRows | None = None

    def batch(self, epoch: int, step: int, max_recent: int) -> CRMBatch | None:
        """Return the lane's share of a step; None if the lane is through."""
        if epoch != self._epoch:
            self._epoch, self._order = epoch, None
            self._slices = self._plan.slices(epoch, self._lane)
        if step >= len(self._slices):
            return None
        group, place = self._slices[step]
        rows = self._rows_of(group)
        if self._order is None:
            self._order = self._plan.order(epoch, group)
        size = self._plan.batch_size // self._plan.lanes
        return rows.batch(self._order[place * size : (place + 1) * size], max_recent)

    def _rows_of(self, group: list[int]) -> CRMRows:
        """Return the rows of a group; the last group's rows and order go first."""
        if self._rows is None or group != self._group:
            self._group, self._rows, self._order = group, None, None
            self._rows = join([self._load(number) for number in group])
        return self._rows


def merge_batches(parts: Sequence[CRMBatch]) -> CRMBatch:
    """Return several batches as one; ragged widths are padded with zeros."""
    shifts = np.cumsum([0, *(len(part.users_R) for part in parts[:-1])])
    merged: dict[str, Any] = {}
    for field in fields(CRMBatch):
        arrays = [getattr(part, field.name) for part in parts]
        if field.name == "requests_B":
            arrays = [array + shift for array, shift in zip(arrays, shifts, strict=True)]
        merged[field.name] = np.concatenate(_pad(arrays))
    return CRMBatch(**merged)


def _pad(arrays: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    if arrays[0].ndim < 2:
        return list(arrays)
    width = max(array.shape[1] for array in arrays)
    return [
        np.pad(array, [(0, 0), (0, width - array.shape[1]), *[(0, 0)] * (array.ndim - 2)])
        for array in arrays
    ]


def blank_batch() -> CRMBatch:
    """Return one row of an unknown user and item: what a process without rows runs."""
    integers, floats = np.zeros((1, 1), np.int32), np.zeros((1, 1), np.float32)
    residuals = np.zeros((1, 1, RESIDUALS), np.float32)
    nobody = np.zeros(1, np.int32)
    return CRMBatch(
        nobody, integers, floats, integers, integers, residuals,
        np.zeros((1, USER_DENSE), np.float32), nobody, nobody, integers, integers, residuals,
        floats, np.zeros((1, ROW_DENSE), np.float32), np.zeros(1, np.float32),
    )
