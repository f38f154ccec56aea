"""What was answered to whom, so that the events that follow can be read as its labels."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Engine, delete, select

from engine.state.database import (
    IMPRESSIONS,
    lock_to_store,
    rows_of,
    upsert,
    writing,
)
from engine.state.deletions import deletion_times


@dataclass(frozen=True, slots=True)
class ShownItem:
    """One item of an answer; scores are logits."""

    item_id: str
    score: float
    crm_score: float | None = None
    llm_score: float | None = None


@dataclass(frozen=True, slots=True)
class Impression:
    """One answer."""

    request_id: str
    user_id: str | None
    """None: a guest."""
    release_id: str
    mode: str
    """Value of types.AnswerMode."""
    asked_s: int
    """When the request came, Unix time; a shadow has that of its answer."""
    items: Sequence[ShownItem]
    """Best first."""
    shadow_of: str | None = None
    """The request whose user saw another release's answer; None: this one was given."""


def record(engine: Engine, impressions: Sequence[Impression]) -> int:
    """Store answers in one transaction; return how many. Those before a user's deletion are not."""
    with writing(engine).begin() as connection:
        lock_to_store(connection)
        users = {each.user_id for each in impressions if each.user_id is not None}
        deleted = deletion_times(connection, users)
        rows = [_row(each) for each in impressions
                if each.asked_s > deleted.get(each.user_id or "", -1)]
        if rows:
            connection.execute(upsert(engine, IMPRESSIONS, "request_id"), rows)
    return len(rows)


def read_impressions(engine: Engine, request_ids: Collection[str]) -> dict[str, Impression]:
    """Return the answers of these requests by id; those that are not kept are left out."""
    found = {}
    with engine.connect() as connection:
        for row in rows_of(
            connection, select(IMPRESSIONS), IMPRESSIONS.c.request_id, request_ids
        ):
            items = [ShownItem(*item) for item in row.items]
            found[row.request_id] = Impression(**{**row._mapping, "items": items})
    return found


def forget_impressions(engine: Engine, before_s: int) -> int:
    """Remove the answers to requests before a time; return how many."""
    with writing(engine).begin() as connection:
        lock_to_store(connection)
        old = delete(IMPRESSIONS).where(IMPRESSIONS.c.asked_s < before_s)
        return connection.execute(old).rowcount


def _row(impression: Impression) -> dict[str, Any]:
    return asdict(impression) | {"items": [
        [item.item_id, item.score, item.crm_score, item.llm_score] for item in impression.items
    ]}
