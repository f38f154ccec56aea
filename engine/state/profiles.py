"""Profiles that were sent to the service: they stand in for those of a release."""

from collections.abc import Iterator, Mapping, Sequence

from sqlalchemy import Engine, select

from engine.state.database import PROFILES, lock_to_store, upsert, writing

Fields = Mapping[str, Sequence[str]]
CHUNK = 10_000
"""Rows that are fetched at a time."""


def put_profiles(engine: Engine, profiles: Mapping[str, Fields]) -> None:
    """Store the fields of users, each whole, in one transaction; durable on return."""
    rows = [
        {"user_id": user_id, "fields": {name: list(values) for name, values in fields.items()}}
        for user_id, fields in sorted(profiles.items())
    ]
    with writing(engine).begin() as connection:
        lock_to_store(connection)
        if rows:
            connection.execute(upsert(engine, PROFILES, "user_id", replaced=["fields"]), rows)


def read_profile(engine: Engine, user_id: str) -> dict[str, tuple[str, ...]] | None:
    """Return the fields that were sent of a user; None if there are none."""
    statement = select(PROFILES.c.fields).where(PROFILES.c.user_id == user_id)
    with engine.connect() as connection:
        fields = connection.scalar(statement)
    return None if fields is None else {name: tuple(values) for name, values in fields.items()}


def sent_profiles(engine: Engine) -> Iterator[tuple[str, dict[str, tuple[str, ...]]]]:
    """Yield every profile that was sent, by user id; holds a read transaction meanwhile."""
    statement = select(PROFILES.c.user_id, PROFILES.c.fields).order_by(PROFILES.c.user_id)
    with engine.connect() as connection:
        for user_id, fields in connection.execution_options(yield_per=CHUNK).execute(statement):
            yield user_id, {name: tuple(values) for name, values in fields.items()}
