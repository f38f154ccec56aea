"""What users did after they were answered: impressions and events -> requests with their outcomes.

An event that names an answer follows that one, if it was given to its user; an event that names
none follows the last answer that its user was given, the greatest request id of one second. Either
way it happened at the answer or within the horizon after it; what does not, follows nothing, nor
does a seeded event. A shadow has the outcome of the answer beside which it was made.

Both tables are read once, in the order of users: what is held at a time is the events of one user,
and the shadows of one user until the answer beside which they were made is read.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import groupby
from operator import attrgetter
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Result,
    Select,
    and_,
    case,
    func,
    null,
    or_,
    select,
)

from engine.state.database import EVENTS, IMPRESSIONS, snapshot
from engine.state.histories import IS_REPORTED
from engine.types import AnsweredRequest, AnswerList, AnswerMode, Outcome

ROWS = 1000
"""Rows that are fetched at a time."""


@dataclass(frozen=True, slots=True)
class AnswerPeriod:
    """Which answers are looked at, and how long after each."""

    start_s: int | None
    """None: from the oldest that is kept."""
    end_s: int
    """The first second after the period."""
    horizon_s: int
    """How long after an answer an event may follow it."""

    def __contains__(self, time_s: int) -> bool:
        """Tell whether an answer of this time is looked at."""
        return (self.start_s is None or time_s >= self.start_s) and time_s < self.end_s


@dataclass(frozen=True, slots=True)
class AnswerCount:
    """Answers of one release in a period."""

    num_answers: int
    num_guests: int
    """Those to guests, whom no event can follow."""


@dataclass(frozen=True, slots=True)
class _Event:
    user_id: str
    item_id: str
    timestamp_s: int
    label: int
    request_id: str | None


@dataclass(frozen=True, slots=True)
class _Answer:
    user_id: str
    request_id: str
    asked_s: int
    shadow_of: str | None
    answer: AnswerList | None
    """None: another release's, which matters as the last one that was given."""


def count_answers(engine: Engine, period: AnswerPeriod) -> dict[str, AnswerCount]:
    """Return how much each release answered in a period, in the order of their ids."""
    columns = IMPRESSIONS.c
    statement = (
        select(columns.release_id, func.count(), func.count(columns.user_id))
        .where(_within(columns.asked_s, period.start_s, period.end_s))
        .group_by(columns.release_id).order_by(columns.release_id)
    )
    with engine.connect() as connection:
        return {
            release_id: AnswerCount(answers, answers - of_users)
            for release_id, answers, of_users in connection.execute(statement)
        }


def read_requests(
    engine: Engine, release_ids: Sequence[str], period: AnswerPeriod
) -> Iterator[AnsweredRequest]:
    """Yield the users' requests of a period that any of these releases answered, one user's
    together. A shadow without the answer that was given is a request without an outcome. Holds a
    read transaction meanwhile.
    """
    with snapshot(engine).connect() as connection:
        rows: Iterator[_Event | _Answer] = merge(
            _events(connection, period), _answers(connection, release_ids, period),
            key=attrgetter("user_id"),      # of one user the events come first
        )
        for _, of_user in groupby(rows, key=attrgetter("user_id")):
            yield from _requests_of(of_user, period)


def _requests_of(
    rows: Iterator[_Event | _Answer], period: AnswerPeriod
) -> Iterator[AnsweredRequest]:
    """Yield one user's requests, given the events, the oldest first, then the answers, the newest
    first, of one second the shadows before the others.
    """
    events = _UserEvents()
    shadows: dict[str, list[_Answer]] = defaultdict(list)
    for row in rows:
        if isinstance(row, _Event):
            events.add(row)
        elif row.shadow_of is not None:
            shadows[row.shadow_of].append(row)
        else:
            outcome = events.after(row, period.horizon_s)
            beside = shadows.pop(row.request_id, [])
            answers = [each.answer for each in (row, *beside) if each.answer is not None]
            if answers and row.asked_s in period:
                yield AnsweredRequest(row.user_id, answers, outcome)
    for orphan in (each for group in shadows.values() for each in group):
        if orphan.answer is not None and orphan.asked_s in period:
            yield AnsweredRequest(orphan.user_id, [orphan.answer], None)


class _UserEvents:
    """One user's events, dealt out to the answers from the newest to the oldest."""

    def __init__(self) -> None:
        self._unnamed: list[_Event] = []
        self._named: dict[str, list[_Event]] = defaultdict(list)

    def add(self, event: _Event) -> None:
        """Take the next event, none older than those before."""
        events = self._unnamed if event.request_id is None else self._named[event.request_id]
        events.append(event)

    def after(self, given: _Answer, horizon_s: int) -> Outcome:
        """Return what followed an answer; every later one must have been asked about before."""
        events = self._named.pop(given.request_id, [])
        while self._unnamed and self._unnamed[-1].timestamp_s >= given.asked_s:
            events.append(self._unnamed.pop())
        followed = [
            event for event in events if 0 <= event.timestamp_s - given.asked_s <= horizon_s
        ]
        liked = [event.item_id for event in followed if event.label == 1]
        return Outcome(liked, len(followed) - len(liked))


def _events(connection: Connection, period: AnswerPeriod) -> Iterator[_Event]:
    """Yield what users did who ever had an answer, by user and time."""
    columns = EVENTS.c
    users = select(IMPRESSIONS.c.user_id).where(IMPRESSIONS.c.user_id.is_not(None))
    statement = (
        select(columns.user_id, columns.item_id, columns.timestamp_s, columns.label,
               columns.request_id)
        .where(
            _within(columns.timestamp_s, period.start_s, period.end_s + period.horizon_s),
            IS_REPORTED, columns.user_id.in_(users),
        )
        .order_by(columns.user_id, columns.timestamp_s)
    )
    return (_Event(**row._mapping) for row in _stream(connection, statement))


def _answers(
    connection: Connection, release_ids: Sequence[str], period: AnswerPeriod
) -> Iterator[_Answer]:
    """Yield the answers to users by user, from the newest to the oldest: with those after the
    period, as they may be the last before an event.
    """
    columns = IMPRESSIONS.c
    is_measured = columns.release_id.in_(release_ids)
    statement = (
        select(
            columns.user_id, columns.request_id, columns.asked_s, columns.shadow_of,
            columns.release_id, columns.mode,
            case((is_measured, columns["items"]), else_=null()).label("items"),
        )
        .where(
            _within(columns.asked_s, period.start_s, period.end_s + period.horizon_s),
            columns.user_id.is_not(None), or_(is_measured, columns.shadow_of.is_(None)),
        )
        .order_by(columns.user_id, columns.asked_s.desc(), columns.shadow_of.is_(None),
                  columns.request_id.desc())
    )
    for row in _stream(connection, statement):
        answer = None if row.items is None else AnswerList(
            row.release_id, AnswerMode(row.mode), [item[0] for item in row.items],
            is_shadow=row.shadow_of is not None,
        )
        yield _Answer(row.user_id, row.request_id, row.asked_s, row.shadow_of, answer)


def _stream(connection: Connection, statement: Select[Any]) -> Result[Any]:
    return connection.execute(statement, execution_options={"yield_per": ROWS})


def _within(
    column: ColumnElement[int], start_s: int | None, before_s: int
) -> ColumnElement[bool]:
    """Return the condition start <= column < before."""
    return and_(column < before_s, *([] if start_s is None else [column >= start_s]))
