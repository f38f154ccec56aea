"""What a row may be used for: its role, a pure function of its user and its time.

Users are dealt to roles anew in each period. A row keeps the role of its period for ever: rows of
JUDGE are never learned or counted by anything, rows of BANK never train the CRM that the bank
reads, so both stay unseen however often training goes on. Rows before `since_s` were learned by
the first, whole training, which knew no roles.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from engine.config import RolesConfig
from engine.data.sampling import sample_key
from engine.data.splits import DAY_S
from engine.types import History, IntArray


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
    """Of a time before there were roles: learned by the first CRM."""


@dataclass(frozen=True, slots=True)
class Roles:
    """The roles of all rows."""

    config: RolesConfig
    since_s: int
    """Rows before it are OLD."""

    def of(self, user_id: str, timestamps_s: IntArray) -> IntArray:
        """Return the Role of each of a user's rows, int8 [L]."""
        periods = np.asarray(timestamps_s) // (self.config.rotate_days * DAY_S)
        found = np.full(len(periods), Role.OLD, np.int8)
        is_dealt = np.asarray(timestamps_s) >= self.since_s
        for period in np.unique(periods[is_dealt]):
            found[is_dealt & (periods == period)] = self._dealt(user_id, int(period))
        return found

    def counted(self, user_id: str, history: History) -> History:
        """Return the events of a history that statistics may count: all but those of JUDGE."""
        kept = self.of(user_id, history.timestamps_s) != Role.JUDGE
        return History(
            history.items[kept], history.ratings[kept], history.labels[kept],
            history.timestamps_s[kept],
        )

    def settings(self) -> dict[str, Any]:
        """Return what names the output of a stage that reads them."""
        return {**self.config.settings(), "since_s": self.since_s}

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
