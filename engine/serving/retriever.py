"""State database, histories and candidates: the first half of every answer."""

import asyncio
import logging
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, repeat

import torch
from ray import serve
from sqlalchemy.exc import SQLAlchemyError

from engine.config import ServingConfig, SourceConfig
from engine.errors import EngineError, RequestError, UnknownItemError
from engine.recommender.catalogue import CatalogueFacts, catalogue_facts
from engine.recommender.feed import Feed
from engine.recommender.feedback import read_feedback
from engine.recommender.loading import load_release
from engine.recommender.lookup import Found, Query, ShownEvent, find, find_popular, user_events
from engine.recommender.ranking import Ranking, RankTask, rank, rank_popular
from engine.recommender.release import LoadedRelease
from engine.recommender.titles import NamedItem, TitleSearch
from engine.serving.groups import Groups
from engine.serving.logs import log_with_serve
from engine.serving.metrics import ReleaseMetrics, shown
from engine.serving.periodic import Periodic
from engine.serving.releases import ReleaseHolder, ReplicaState, Unavailable
from engine.state.database import open_database
from engine.state.deletions import Deletion, delete_user
from engine.state.events import MAX_AHEAD_S, Event, EventState, EventStatus, append
from engine.state.histories import SEED_PREFIX, some_user_ids
from engine.state.impressions import Impression, forget_impressions, record
from engine.state.items import ItemState, SentItem, put_items
from engine.state.profiles import put_profiles

log = logging.getLogger(__name__)

GROUP_EVENTS = 4_000
"""Events of several requests that may share a commit."""
DAY_S = 86_400
CLEANING_S = 3_600
"""How often a replica looks for answers that are too old."""


@dataclass(frozen=True, slots=True)
class SentEvent:
    """One interaction as a client sends it."""

    event_id: str
    user_id: str
    item_id: str
    timestamp_s: int
    rating: float | None
    label: int | None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class SentUser:
    """One profile as a client sends it."""

    user_id: str
    fields: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class ItemStatus:
    """What became of a sent item or profile."""

    state: ItemState
    reason: str | None = None


@serve.deployment(name="Retriever", max_ongoing_requests=64)
class Retriever:
    """Reads and writes events; finds what the scorer shall rank."""

    def __init__(self, config: ServingConfig) -> None:
        log_with_serve()
        torch.set_num_threads(1)
        self.config = config
        self.database = open_database(config.database_url)
        self.feed, self.titles = Feed(self.database), TitleSearch()

        load = partial(
            load_release, model_cache=config.model_cache, device=config.device, with_llm=False,
            retrieval=config.retrieval,
        )
        self.releases = ReleaseHolder(load, prepare=self.feed.current)
        self._gauges = shown(ReleaseMetrics(self.releases).show)
        self._cleaning = Periodic(CLEANING_S, self.forget_old)
        self._events = Groups(self._store_together, GROUP_EVENTS, len)

    async def reconfigure(self, user_config: dict[str, object]) -> None:
        """Follow the registry's `live` file."""
        self._gauges.start()
        self._cleaning.start()
        await self.releases.reconfigure(user_config)

    async def state(self) -> ReplicaState:
        """Return what this replica holds."""
        return self.releases.state()

    async def find(self, query: Query, release_id: str | None) -> Found | Unavailable:
        """Return the history and candidates by one release (None: the one that answers the user).
        """
        release = self.releases.find(release_id, query.user_id)
        if isinstance(release, Unavailable):
            return release
        live = self.releases.held.live
        try:
            found = await asyncio.to_thread(self._find, release, query)
        except UnknownItemError:
            if release_id is not None or live is None or release is live:
                raise
            found = await asyncio.to_thread(self._find, live, query)    # the challenger is older
        shadow_id = self.releases.held.shadow_of(query.user_id)
        return replace(found, shadow_id=None if shadow_id == found.release_id else shadow_id)

    def _find(self, release: LoadedRelease, query: Query) -> Found:
        current = self.feed.current(release)
        try:
            return find(current, self.database, query, self.config.ranking)
        except (EngineError, SQLAlchemyError):
            raise
        except Exception:   # whatever it is, there are popular items
            log.exception("release %s: answering by popularity, the CRM failed", release.release_id)
            return find_popular(current, self.database, query, self.config.ranking)

    async def rank(self, task: RankTask, release_id: str) -> Ranking | Unavailable:
        """Rank by the CRM, where no scorer does it in time."""
        release = self.releases.find(release_id)
        if isinstance(release, Unavailable):
            return release
        return await asyncio.to_thread(self._rank, release, task)

    def _rank(self, release: LoadedRelease, task: RankTask) -> Ranking:
        current = self.feed.current(release, task.revision)
        try:
            [ranking] = rank(current, [task])
        except Exception:   # whatever it is, some items are more popular than others
            log.exception("release %s: answering by popularity, the CRM failed", release.release_id)
            return rank_popular(current, task.candidates, task.k)
        return ranking

    async def user_events(self, user_id: str, limit: int) -> list[ShownEvent] | Unavailable:
        """Return a user's newest events, newest first."""
        release = await self._current(user_id)
        if isinstance(release, Unavailable):
            return release
        return await asyncio.to_thread(user_events, release, self.database, user_id, limit)

    async def put_items(self, items: Sequence[SentItem]) -> list[ItemStatus] | Unavailable:
        """Store items; each is on disk (or refused) when this returns."""
        release = self.releases.find(None)
        if isinstance(release, Unavailable):
            return release
        reasons = [unknown_field(item.fields, release.source.item_fields) for item in items]
        good = [item for item, reason in zip(items, reasons, strict=True) if reason is None]
        return statuses_of(reasons, await asyncio.to_thread(put_items, self.database, good))

    async def put_users(self, users: Sequence[SentUser]) -> list[ItemStatus] | Unavailable:
        """Store profiles; each is on disk (or refused) when this returns."""
        release = self.releases.find(None)
        if isinstance(release, Unavailable):
            return release
        reasons = [unknown_field(user.fields, release.source.user_fields) for user in users]
        good = {user.user_id: user.fields
                for user, reason in zip(users, reasons, strict=True) if reason is None}
        await asyncio.to_thread(put_profiles, self.database, good)
        return statuses_of(reasons, repeat(ItemState.STORED))

    async def users(self, prefix: str, limit: int) -> list[str]:
        """Return ids with stored events that begin with a prefix; needs no release."""
        return await asyncio.to_thread(some_user_ids, self.database, prefix, limit)

    async def search(self, text: str, limit: int) -> list[NamedItem] | Unavailable:
        """Return items by text."""
        release = await self._current()
        if isinstance(release, Unavailable):
            return release
        return await asyncio.to_thread(self.titles.search, release, text, limit)

    async def catalogue(self) -> CatalogueFacts | Unavailable:
        """Return the facts of the live release."""
        release = await self._current()
        return release if isinstance(release, Unavailable) else catalogue_facts(release)

    async def append(self, events: Sequence[SentEvent]) -> list[EventStatus] | Unavailable:
        """Store events; each is on disk (or refused) when this returns.

        Whoever answers a user, items of all releases that answer may be reported, and labels follow
        the live one's rule: an experiment loses no event and has one measure.
        """
        live = self.releases.find(None)
        if isinstance(live, Unavailable):
            return live
        answering = [await asyncio.to_thread(self.feed.current, each)
                     for each in self.releases.held.answering()]
        known = {event.item_id for event in events
                 if any(event.item_id in each.catalogue for each in answering)}
        read = [read_event(live.source, known, event) for event in events]
        good = [event for event in read if isinstance(event, Event)]
        statuses = iter(await self._events.ask(good) if good else [])
        return [next(statuses) if isinstance(each, Event) else each for each in read]

    async def _store_together(self, groups: list[list[Event]]) -> list[list[EventStatus]]:
        """Store the events of requests that waited for the last commit with one commit."""
        together = [event for group in groups for event in group]
        statuses = iter(await asyncio.to_thread(append, self.database, together))
        return [list(islice(statuses, len(group))) for group in groups]

    async def _current(self, user_id: str | None = None) -> LoadedRelease | Unavailable:
        """Return the release that answers a user (None: a guest) over today's catalogue."""
        release = self.releases.find(None, user_id)
        if isinstance(release, Unavailable):
            return release
        return await asyncio.to_thread(self.feed.current, release)

    async def record(self, impressions: Sequence[Impression]) -> None:
        """Store answers."""
        await asyncio.to_thread(record, self.database, impressions)

    async def forget_old(self) -> None:
        """Remove the answers that are kept no longer."""
        oldest_s = int(time.time()) - self.config.impression_days * DAY_S
        await asyncio.to_thread(forget_impressions, self.database, oldest_s)

    async def delete(self, user_id: str) -> Deletion:
        """Delete a user; needs no release."""
        return await asyncio.to_thread(delete_user, self.database, user_id)


def statuses_of(
    reasons: Sequence[str | None], states: Iterable[ItemState]
) -> list[ItemStatus]:
    """Return a status for each reason to reject; where there is none, the next state."""
    stored = iter(states)
    return [
        ItemStatus(next(stored) if reason is None else ItemState.REJECTED, reason)
        for reason in reasons
    ]


def unknown_field(fields: Mapping[str, object], known: Sequence[str]) -> str | None:
    """Return why fields cannot be stored; None if they can."""
    unknown = sorted(set(fields) - set(known))
    return f"fields: no such field {unknown[0]!r}; known are {sorted(known)}" if unknown else None


def read_event(
    source: SourceConfig, known: Container[str], event: SentEvent
) -> Event | EventStatus:
    """Return an event of a known item with its label, or why it is rejected."""
    try:
        if event.event_id.startswith(SEED_PREFIX):
            raise RequestError(f"event_id: {SEED_PREFIX!r} begins ids of seeded events")
        if event.item_id not in known:
            raise RequestError(f"item_id: item {event.item_id!r} is not in the catalogue")
        if event.timestamp_s > time.time() + MAX_AHEAD_S:
            raise RequestError(f"timestamp_s: {event.timestamp_s} is in the future")
        feedback = read_feedback(source, event.rating, event.label)
    except RequestError as error:
        return EventStatus(EventState.REJECTED, str(error))
    return Event(
        event.event_id, event.user_id, event.item_id, event.timestamp_s, feedback.rating,
        feedback.label, event.request_id, is_label_derived=feedback.is_label_derived,
    )
