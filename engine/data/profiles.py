"""Users by id: their profile fields."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from engine.types import Profile


@dataclass(frozen=True)
class Profiles:
    """What the source knows of its users."""

    fields: tuple[str, ...]
    _by_user: dict[str, Profile]

    def __len__(self) -> int:
        return len(self._by_user)

    def __iter__(self) -> Iterator[Profile]:
        return iter(self._by_user.values())

    def of(self, user_id: str) -> Profile:
        """Return a user's profile; one without fields if the source has none."""
        return self._by_user.get(user_id) or Profile(user_id, dict.fromkeys(self.fields, ()))

    def most_frequent(self, field: str) -> tuple[str, ...]:
        """Return the value of a field that most users have; none where no two share one."""
        counts = Counter(
            value for profile in self for value in (profile.fields or {})[field]
        )
        return tuple(value for value, count in counts.most_common(1) if count > 1)

    @classmethod
    def from_table(
        cls, table: pa.Table, fields: Sequence[str], user_ids: Iterable[str] | None = None
    ) -> "Profiles":
        """Read a table of `users_schema`: all users, or these alone."""
        if user_ids is not None:
            wanted = pa.array(list(user_ids), table["user_id"].type)
            table = table.filter(pc.is_in(table["user_id"], value_set=wanted))
        columns = [table[name].to_pylist() for name in fields]
        by_user = {
            user_id: Profile(
                user_id,
                {name: tuple(column[row]) for name, column in zip(fields, columns, strict=True)},
            )
            for row, user_id in enumerate(table["user_id"].to_pylist())
        }
        return cls(tuple(fields), by_user)
