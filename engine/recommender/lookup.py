"""A request -> what to rank, from the state database and the release's retriever half."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import Engine

from engine.config import RankingConfig
from engine.errors import UnknownUserError
from engine.recommender.candidates import (
    Filters,
    allowed_items,
    find_candidates,
    named_items,
    popular_items,
)
from engine.recommender.histories import GuestItem, guest_history, stored_history
from engine.recommender.ranking import (
    Ranking,
    RankTask,
    StageClock,
    rank,
    rank_popular,
)
from engine.recommender.release import LoadedRelease
from engine.state.deletions import is_deleted
from engine.state.histories import newest_events, seen_items
from engine.state.profiles import read_profile
from engine.types import History, Profile


@dataclass(frozen=True, slots=True)
class Query:
    """One request. Exactly one of `user_id` and `guest` is set."""

    k: int
    """Items of the answer."""
    user_id: str | None = None
    guest: Sequence[GuestItem] | None = None
    """The history of somebody who has none stored, oldest first."""
    item_ids: Sequence[str] | None = None
    """Candidates; None: the retrieval head finds them."""
    filters: Filters = field(default_factory=Filters)
    is_scored_whole: bool = False
    """Whether the language model scores every candidate, not only the best."""
    with_explanation: bool = False
    with_gates: bool = False
    answer_by_s: float = math.inf
    """Unix time by which the answer is wanted."""


@dataclass(frozen=True, slots=True)
class ShownEvent:
    """One event of the history that an answer used."""

    item_id: str
    title: str
    timestamp_s: int
    rating: float
    label: int


@dataclass(frozen=True, slots=True)
class Found:
    """What to rank: either a task for the scorer or a ready answer of popular items."""

    release_id: str
    history_length: int
    newest: list[ShownEvent]
    """The newest events, newest first."""
    task: RankTask | None = None
    ranking: Ranking | None = None
    stage_ms: dict[str, float] = field(default_factory=dict)
    shadow_id: str | None = None
    """Another release that shall answer the same, for the record alone."""


def find(
    release: LoadedRelease, database: Engine, query: Query, ranking: RankingConfig
) -> Found:
    """Read the history and choose the candidates.

    Raises UnknownItemError, and RequestError for a filter or rating that is not allowed.
    """
    clock = StageClock()
    history = read_history(release, database, query, ranking)
    query = _without_seen(release, database, history, query, ranking)
    profile = Profile() if query.user_id is None else read_user(release, database, query.user_id)
    clock.stop("history")
    return choose(release, history, profile, query, ranking, clock)


def choose(
    release: LoadedRelease, history: History, profile: Profile, query: Query,
    ranking: RankingConfig, clock: StageClock,
) -> Found:
    """Choose the candidates for a history; popular items if nothing is known. Raises as `find`."""
    if len(history) == 0 and not profile.has_values:
        return _popular(release, history, query, ranking, clock)
    task = _task(release, history, profile, query, ranking)
    clock.stop("candidates")
    found = _nothing_found(release, history, ranking)
    return replace(found, task=task, stage_ms=clock.stage_ms)


def find_popular(
    release: LoadedRelease, database: Engine, query: Query, ranking: RankingConfig
) -> Found:
    """Return popular items that pass the filters: for when the CRM fails. Raises as `find`."""
    clock = StageClock()
    history = read_history(release, database, query, ranking)
    query = _without_seen(release, database, history, query, ranking)
    clock.stop("history")
    return _popular(release, history, query, ranking, clock)


def answer(release: LoadedRelease, found: Sequence[Found]) -> list[Ranking]:
    """Return the ranking of each: ready ones as they are, all tasks ranked in one call."""
    tasks = [each.task for each in found if each.task is not None]
    ranked = iter(rank(release, tasks) if tasks else [])
    return [each.ranking or next(ranked) for each in found]


def read_history(
    release: LoadedRelease, database: Engine, query: Query, ranking: RankingConfig
) -> History:
    """Return the newest events of the guest's history, or of the user's stored ones."""
    limit = history_limit(release, ranking)
    if query.guest is not None:
        return guest_history(release, query.guest).tail(limit)
    return newest_known(release, database, query.user_id or "", limit)


def read_user(release: LoadedRelease, database: Engine, user_id: str) -> Profile:
    """Return what is known of a user beside the history: the fields that were sent, or else those
    of the release.

    Of a user who was deleted, neither the release's fields nor the id: its embedding is of before.
    """
    known = Profile() if is_deleted(database, user_id) else release.profiles.of(user_id)
    sent = read_profile(database, user_id)
    if sent is None:
        return known
    return Profile(known.user_id, {name: sent.get(name, ()) for name in release.source.user_fields})


def history_limit(release: LoadedRelease, ranking: RankingConfig) -> int:
    """Return how many events of a user, the newest, an answer reads."""
    return min(ranking.max_history, release.max_history)


def _without_seen(
    release: LoadedRelease, database: Engine, history: History, query: Query,
    ranking: RankingConfig,
) -> Query:
    """Return the query whose filters leave out what is older than the history that is read."""
    if not query.filters.exclude_seen or len(history) < history_limit(release, ranking):
        return query
    return replace(query, filters=query.filters.without(_seen(database, query)))


def _seen(database: Engine, query: Query) -> list[str]:
    """Return every item of the history, those too old to be read, too."""
    if query.guest is not None:
        return [item.item_id for item in query.guest]
    return seen_items(database, query.user_id or "")


def newest_known(
    release: LoadedRelease, database: Engine, user_id: str, limit: int
) -> History:
    """Return a user's newest `limit` events whose items the release has."""
    asked = limit
    while True:
        events = newest_events(database, user_id, asked)
        history = stored_history(release, events)
        if len(history) >= limit or len(events) < asked:
            return history.tail(limit)
        asked *= 2          # some items came after this release: look further back


def user_events(
    release: LoadedRelease, database: Engine, user_id: str, limit: int
) -> list[ShownEvent]:
    """Return a user's newest events, newest first; UnknownUserError if nobody has this id."""
    history = newest_known(release, database, user_id, limit)
    has_events = len(history) > 0 or len(newest_events(database, user_id, 1)) > 0
    if not has_events and not read_user(release, database, user_id).has_values:
        raise UnknownUserError(f"user {user_id!r} has no events and no profile")
    return shown_events(release, history, limit)


def shown_events(release: LoadedRelease, history: History, limit: int) -> list[ShownEvent]:
    """Return the newest events of a history, newest first."""
    newest = history.tail(limit)
    return [
        ShownEvent(
            release.catalogue.item_ids[item], release.catalogue.titles[item], int(time_s),
            float(rating), int(label),
        )
        for item, rating, label, time_s in zip(
            newest.items[::-1].tolist(), newest.ratings[::-1], newest.labels[::-1],
            newest.timestamps_s[::-1], strict=True,
        )
    ]


def _popular(
    release: LoadedRelease, history: History, query: Query, ranking: RankingConfig,
    clock: StageClock,
) -> Found:
    popular = _rank_popular(release, history, query)
    clock.stop("candidates")
    found = _nothing_found(release, history, ranking)
    return replace(found, ranking=popular, stage_ms=clock.stage_ms)


def _nothing_found(release: LoadedRelease, history: History, ranking: RankingConfig) -> Found:
    """Return what an answer tells of the history, without anything to rank."""
    newest = shown_events(release, history, ranking.shown_history)
    return Found(release.release_id, len(history), newest)


def _rank_popular(release: LoadedRelease, history: History, query: Query) -> Ranking:
    if query.item_ids is None:
        items = popular_items(release, history, query.filters, query.k)
        return rank_popular(release, items, query.k, is_ordered=True)
    items = named_items(release, query.item_ids)
    allowed = allowed_items(release, history, query.filters)
    return rank_popular(release, items[allowed[items]], query.k)


def _task(
    release: LoadedRelease, history: History, profile: Profile, query: Query,
    ranking: RankingConfig,
) -> RankTask:
    if query.item_ids is None:
        items = find_candidates(release, history, profile, query.filters, ranking.max_candidates)
    else:
        named = named_items(release, query.item_ids)
        items = named[allowed_items(release, history, query.filters)[named]]
    llm_candidates = len(items) if query.is_scored_whole else ranking.llm_candidates
    return RankTask(
        profile, history, items, llm_candidates, query.k, query.with_explanation, query.with_gates,
        query.answer_by_s, release.revision,
    )
