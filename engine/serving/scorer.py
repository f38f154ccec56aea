"""CRM, gates and language model with its bank: the second half of an answer.

Requests that wait while others are ranked share the next forward pass: different users, each under
its own mix. Those of another release have a pass of their own, so a challenger takes time from the
live release's passes, but no place in them.
"""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

import torch
from ray import serve

from engine.config import ServingConfig
from engine.recommender.deadlines import Pace
from engine.recommender.feed import Embedded, Embedder, Feed
from engine.recommender.loading import load_release
from engine.recommender.prefix_cache import PrefixCache
from engine.recommender.ranking import Ranking, RankTask, rank
from engine.recommender.release import LoadedRelease
from engine.serving.groups import Groups
from engine.serving.logs import log_with_serve
from engine.serving.metrics import BatchMetrics, ReleaseMetrics, shown
from engine.serving.periodic import Periodic
from engine.serving.releases import ReleaseHolder, ReplicaState, Unavailable
from engine.state.database import open_database

log = logging.getLogger(__name__)

LATE_S = 60.0
"""How often a scorer looks for items that could not be embedded when they came, or that another
release needs otherwise."""
MAX_WAITING = 1000
"""Senders of items that wait for the same reading."""
Job = tuple[LoadedRelease, RankTask]


@serve.deployment(name="Scorer", max_ongoing_requests=64)
class Scorer:
    """Ranks candidates."""

    def __init__(self, config: ServingConfig) -> None:
        log_with_serve()
        torch.set_num_threads(config.threads)
        self.database = open_database(config.database_url)
        self.feed, self._embedder = Feed(self.database), Embedder(self.database)
        load = partial(load_release, model_cache=config.model_cache, device=config.device)
        self.releases = ReleaseHolder(load, prepare=self.feed.current)
        self._embedding = Groups(self._embed_together, MAX_WAITING)
        self._late = Periodic(LATE_S, self.embed_late)
        self._config = config
        self._cache = PrefixCache(config.prefix_cache_mib * 2**20)
        self._metrics = BatchMetrics(self._cache)
        self._gauges = shown(ReleaseMetrics(self.releases).show, self._metrics.show)
        self._groups: dict[str, Groups[Job, Ranking | Exception]] = {}
        """By release."""
        self._one_batch = asyncio.Lock()

    async def reconfigure(self, user_config: dict[str, object]) -> None:
        """Follow the registry's `live` file."""
        self._gauges.start()
        self._late.start()
        await self.releases.reconfigure(user_config)

    async def state(self) -> ReplicaState:
        """Return what this replica holds."""
        return self.releases.state()

    async def forget(self) -> None:
        """Forget what was computed of users; it does not tell whose it is."""
        self._cache.clear()

    async def rank(self, task: RankTask, release_id: str) -> Ranking | Unavailable:
        """Rank one request's candidates by one release."""
        release = self.releases.find(release_id)
        if isinstance(release, Unavailable):
            return release
        if task.revision > 0:
            release = await asyncio.to_thread(self.feed.current, release, task.revision)
        ranking = await self._group(release_id).ask((release, task))
        if isinstance(ranking, Exception):
            raise ranking
        return ranking

    def _group(self, release_id: str) -> Groups[Job, Ranking | Exception]:
        """Return where the requests of a release wait; those of releases that went are dropped."""
        if release_id not in self._groups:
            pace = Pace()

            async def rank_batch(jobs: list[Job]) -> list[Ranking | Exception]:
                """Rank a batch off the event loop; there is one batch at a time.

                A shadow's prefixes would crowd out those of users.
                """
                cache = None if self.releases.held.is_shadow(release_id) else self._cache
                rankings = await asyncio.to_thread(rank_each, jobs, cache, pace)
                self._metrics.count_batch(len(jobs))
                return rankings

            held = {key: each for key, each in self._groups.items()
                    if self.releases.held.get(key) is not None}
            self._groups = held | {release_id: Groups(
                rank_batch, self._config.max_batch_size, wait_s=self._config.batch_wait_s,
                turn=self._one_batch,
            )}
        return self._groups[release_id]

    async def embed(self) -> bool:
        """Read the texts of the newest items; tell whether all that were sent are read."""
        return (await self._embedding.ask(None)).is_all

    async def _embed_together(self, callers: list[None]) -> list[Embedded]:
        answering = self.releases.held.answering()
        readers = {release.item_texts.encoder: release for release in answering}.values()
        found = [await asyncio.to_thread(self._embedder.embed, release) for release in readers]
        is_all = bool(found) and all(each.is_all for each in found)
        return [Embedded(sum(each.items for each in found), is_all)] * len(callers)

    async def embed_late(self) -> None:
        """Read what nobody waits for any more, as long as that gets on."""
        while True:
            embedded = await self._embedding.ask(None)
            if embedded.is_all or embedded.items == 0:
                return


def rank_each(
    jobs: Sequence[Job], cache: PrefixCache | None = None, pace: Pace | None = None
) -> list[Ranking | Exception]:
    """Rank jobs together; where that fails, each alone: what is wrong with one request fails no
    other one.
    """
    try:
        return [*rank_jobs(jobs, cache, pace)]
    except Exception as error:  # noqa: BLE001  it is the caller's
        if len(jobs) == 1:
            return [error]
        log.warning("a batch of %d requests failed, each is ranked alone: %r", len(jobs), error)
        return [found for job in jobs for found in rank_each([job], cache, pace)]


def rank_jobs(
    jobs: Sequence[Job], cache: PrefixCache | None = None, pace: Pace | None = None
) -> list[Ranking]:
    """Rank jobs; those of one release over one revision of its catalogue share forward passes."""
    rankings: dict[int, Ranking] = {}
    for release in {id(job[0]): job[0] for job in jobs}.values():
        places = [place for place, job in enumerate(jobs) if job[0] is release]
        ranked = rank(release, [jobs[place][1] for place in places], cache, pace)
        rankings |= dict(zip(places, ranked, strict=True))
    return [rankings[place] for place in range(len(jobs))]
