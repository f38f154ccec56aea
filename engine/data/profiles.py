"""Users by id: their profile fields."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from engine.types import Profile


@dataclass(frozen=True)
class Profiles:
    """What the source knows of its users."""

    fields: tuple[str, ...]
    _by_user: dict[str, Profile]

    def __len__(self) -> int:
        return len(self._by_user)

    def of(self, user_id: str) -> Profile:
        """Return a user's profile; one without fields if the source has none."""
        return self._by_user.get(user_id) or Profile(user_id, dict.fromkeys(self.fields, ()))

    @classmethod
    def from_table(cls, table: pa.Table, fields: Sequence[str]) -> "Profiles":
        """Read a table of `users_schema`."""
        columns = [table[name].to_pylist() for name in fields]
        by_user = {
            user_id: Profile(
                user_id,
                {name: tuple(column[row]) for name, column in zip(fields, columns, strict=True)},
            )
            for row, user_id in enumerate(table["user_id"].to_pylist())
        }
        return cls(tuple(fields), by_user)
