"""What is kept of answers, after the clients have them.

    keep      -> Retriever.record, as many as wait with one call
    shadow    -> another release answers the same; that is kept, too, and nobody sees it
"""

import asyncio
import logging
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from engine.recommender.lookup import Query
from engine.recommender.ranking import Ranking
from engine.serving.agreement import Handle, rank_by
from engine.serving.groups import Groups
from engine.serving.metrics import AnswerMetrics
from engine.state.impressions import Impression, ShownItem

log = logging.getLogger(__name__)

GROUP_ANSWERS = 100
"""Answers that are stored with one call."""
MAX_UNSTORED = 10_000
"""Answers that may wait for that; more are not stored."""
MAX_SHADOWS = 8
"""Shadows that one ingress asks for at a time; more are not made: users come first."""
SHADOW_S = 10.0
"""Time for a shadow, unless its request had less."""


class Records:
    """Keeps the answers of one ingress."""

    def __init__(self, retriever: Handle, scorer: Handle, metrics: AnswerMetrics) -> None:
        self._retriever, self._scorer, self._metrics = retriever, scorer, metrics
        self._impressions = Groups(self._record_together, GROUP_ANSWERS)
        # Tasks without a reference may be collected.
        self._stores: set[asyncio.Task[None]] = set()
        self._shadows: set[asyncio.Task[None]] = set()

    def keep(self, impression: Impression) -> None:
        """Store an answer; nobody waits for it."""
        if len(self._impressions) >= MAX_UNSTORED:
            self._metrics.count_lost_impression()
        else:
            _start(self._store(impression), self._stores)

    def shadow(self, query: Query, release_id: str, given: Impression, time_s: float) -> None:
        """Let another release answer the same in the same time, and store that; nobody waits for
        it.
        """
        if len(self._shadows) >= MAX_SHADOWS:
            self._metrics.count_lost_shadow()
            return
        time_s = min(time_s, SHADOW_S)
        same = replace(
            query, answer_by_s=time.time() + time_s, with_explanation=False, with_gates=False
        )
        _start(self._store_shadow(same, release_id, given, time_s), self._shadows)

    async def close(self) -> None:
        """Wait until all answers are stored; shadows are not waited for."""
        for shadow in self._shadows:
            shadow.cancel()
        await asyncio.gather(*self._stores)

    async def _store(self, impression: Impression) -> None:
        try:
            await self._impressions.ask(impression)
        except Exception as error:  # noqa: BLE001  whatever it is, the answer was given
            self._metrics.count_lost_impression()
            log.warning("answer %s is not stored: %s", impression.request_id, type(error).__name__)

    async def _record_together(self, impressions: list[Impression]) -> list[None]:
        await self._retriever.record.remote(impressions)
        return [None] * len(impressions)

    async def _store_shadow(
        self, query: Query, release_id: str, given: Impression, time_s: float
    ) -> None:
        try:
            async with asyncio.timeout(time_s):
                ranking = await rank_by(self._retriever, self._scorer, query, release_id)
            if ranking is not None:
                shadow_id = f"{given.request_id}-shadow"
                shadow = impression_of(ranking, shadow_id, given.user_id, given.asked_s)
                await self._impressions.ask(replace(shadow, shadow_of=given.request_id))
                self._metrics.count_shadow(ranking)
                return
        except Exception as error:  # noqa: BLE001  whatever it is, the answer was given
            log.warning("no shadow of %s: %s", given.request_id, type(error).__name__)
        self._metrics.count_lost_shadow()


def _start(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def impression_of(
    ranking: Ranking, request_id: str, user_id: str | None, asked_s: int
) -> Impression:
    """Return what is kept of an answer (user_id None: a guest's)."""
    items = [
        ShownItem(item.item_id, item.score, item.crm_score, item.llm_score)
        for item in ranking.items
    ]
    return Impression(request_id, user_id, ranking.release_id, ranking.mode, asked_s, items)
