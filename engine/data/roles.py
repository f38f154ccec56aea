"""What a row may be used for: its role, a pure function of its user and its time.

Users are dealt to roles anew in each period. A row keeps the role of its period for ever: rows of
JUDGE are never learned or counted by anything, rows of BANK never train the CRM that the bank
reads, so both stay unseen however often training goes on. Rows before `since_s`, where the first,
whole training began to report, are of a time without roles.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from engine.config import RolesConfig
from engine.data.sampling import sample_key
from engine.data.splits import DAY_S
from engine.types import NO_WINDOW, History, IntArray, Timeline, Window


class Role(IntEnum):
    """What a row may be used for."""

    CRM = 0
    """Trains the CRM."""
    BANK = 1
    """Trains bank and gates."""
    TUNE = 2
    """Fits the fusion."""
    JUDGE = 3
    """Compares releases."""
    OLD = 4
    """Of the time before there were roles; it trains the CRM."""


TRAIN_CRM = (Role.CRM, Role.OLD)


@dataclass(frozen=True, slots=True)
class Roles:
    """The roles of all rows."""

    config: RolesConfig
    since_s: int
    """Rows before it are OLD."""
    max_user_rows: int = field(default=sys.maxsize, compare=False)
    """The newest of a user that are used: of those counted, and of each window. Roles of another
    limit are the same roles.
    """

    def of(self, user_id: str, timestamps_s: IntArray) -> IntArray:
        """Return the Role of each of a user's rows, int8 [L]."""
        periods = np.asarray(timestamps_s) // (self.config.rotate_days * DAY_S)
        found = np.full(len(periods), Role.OLD, np.int8)
        is_dealt = np.asarray(timestamps_s) >= self.since_s
        for period in np.unique(periods[is_dealt]):
            found[is_dealt & (periods == period)] = self._dealt(user_id, int(period))
        return found

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            **self.config.settings(), "since_s": self.since_s, "max_user_rows": self.max_user_rows,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Roles":
        """Read what `to_json` returned."""
        config = {name: values[name] for name in RolesConfig.model_fields}
        return cls(
            RolesConfig.model_validate(config), int(values["since_s"]), int(values["max_user_rows"])
        )

    def counted(self, user_id: str, history: History) -> History:
        """Return the events of a history that statistics may count: those that train the CRM. A row
        of another role is scored by it, and must not find itself counted.
        """
        of_crm = np.isin(self.of(user_id, history.timestamps_s), TRAIN_CRM)
        kept = np.flatnonzero(of_crm)[-self.max_user_rows :]
        return History(
            history.items[kept], history.ratings[kept], history.labels[kept],
            history.timestamps_s[kept],
        )

    def _dealt(self, user_id: str, period: int) -> Role:
        """Return a user's role in one period."""
        config = self.config
        point = sample_key(config.seed, f"{period}:{user_id}") / 2**64
        for role, share in (
            (Role.JUDGE, config.judge), (Role.TUNE, config.tune), (Role.BANK, config.bank),
        ):
            if point < share:
                return role
            point -= share
        return Role.CRM


@dataclass(frozen=True, slots=True)
class JudgedRows:
    """The rows of a timeline that judge."""

    timeline: Timeline
    roles: Roles

    def windows_of(self, user_id: str, timestamps_s: IntArray) -> IntArray:
        """Return the window of each row by its time; NO_WINDOW for one of another role."""
        windows = self.timeline.window_of(timestamps_s)
        windows[self.roles.of(user_id, timestamps_s) != Role.JUDGE] = NO_WINDOW
        return newest(windows, self.roles.max_user_rows)


@dataclass(frozen=True, slots=True)
class NightRows:
    """What the rows before a night's end are for: those new to the CRM or the bank are learned, and
    some of the others replayed.
    """

    roles: Roles
    crm_since_s: int
    """Rows of the CRM from here on are new to it."""
    bank_since_s: int
    tune_since_s: int
    end_s: int
    is_replay: bool = False
    """Whether this is about the rows that are not new."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "roles": self.roles.to_json()}

    def windows_of(self, user_id: str, timestamps_s: IntArray) -> IntArray:
        """Return the window of each row; NO_WINDOW for what has none tonight.

        The bank replays only rows that its CRM never learned, so none from before there were roles.
        """
        times, roles = np.asarray(timestamps_s), self.roles.of(user_id, timestamps_s)
        of_crm = np.isin(roles, TRAIN_CRM)
        windows = np.full(len(times), NO_WINDOW, np.int8)
        windows[of_crm & ((times < self.crm_since_s) == self.is_replay)] = Window.CRM
        of_bank = roles == Role.BANK
        windows[of_bank & ((times < self.bank_since_s) == self.is_replay)] = Window.BANK
        if not self.is_replay:
            windows[(roles == Role.TUNE) & (times >= self.tune_since_s)] = Window.VALIDATION
        windows[times >= self.end_s] = NO_WINDOW
        return newest(windows, self.roles.max_user_rows)


def newest(windows: IntArray, limit: int) -> IntArray:
    """Return the windows of a user's rows, oldest first, where each keeps its newest `limit` rows.
    """
    kept = windows.copy()
    for window in np.unique(windows[windows != NO_WINDOW]):
        kept[np.flatnonzero(windows == window)[:-limit]] = NO_WINDOW
    return kept
