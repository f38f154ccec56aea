"""A challenger: a release that is tried out beside the live one.

    split     answers the requests of a share of the users
    shadow    answers beside the live release, for the record alone, what that share asks
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engine.errors import ReleaseError


@dataclass(frozen=True, slots=True)
class Experiment:
    """Which users' requests a challenger answers."""

    release_id: str
    share: float
    """Of all users, above 0 and up to 1."""
    is_shadow: bool
    started_s: int
    """Unix time."""

    def __post_init__(self) -> None:
        """Raise ReleaseError for a share out of range."""
        if not 0 < self.share <= 1:
            raise ReleaseError(f"share: {self.share} is not above 0 and up to 1")

    def includes(self, user_id: str) -> bool:
        """Tell whether a user is of the share.

        Depends on user and challenger alone: every replica says the same, a larger share keeps the
        users of a smaller one, and another challenger gets other users.
        """
        digest = hashlib.sha256(f"{self.release_id}\0{user_id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.share * 2**64

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Experiment":
        """Return what `to_json` wrote; TypeError where it did not."""
        return Experiment(**values)
