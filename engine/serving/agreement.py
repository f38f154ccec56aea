"""One request, one release: retriever and scorer must answer from the same.

    Retriever.find(live)  ->  Found by r  ->  Scorer.rank by r  ->  Ranking by r

While a promotion reaches the replicas they may differ. Then the scorer names the release that it
holds, and the retriever, which keeps the previous one, answers again from that.

A user's requests go to the same scorer where the config routes by session: it may have kept their
prefix. A scorer that dies is asked once more, which is another one; where none answers in time, or
all are too busy, the retriever ranks by its CRM.
"""

import asyncio
import logging
import math
import time
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from engine.errors import ReleaseNotFoundError
from engine.recommender.lookup import Found, Query
from engine.recommender.ranking import Ranking, RankTask
from engine.serving.releases import Unavailable

Handle = DeploymentHandle[Any]
ATTEMPTS = 3
CRM_S = 0.02
"""Part of a request's time that is kept for an answer by the CRM alone."""

log = logging.getLogger(__name__)


async def rank_by_one_release(
    retriever: Handle, scorer: Handle, query: Query
) -> tuple[Found, Ranking]:
    """Return what was found and how it ranks; ReleaseNotFoundError without a common release."""
    release_id: str | None = None
    for _ in range(ATTEMPTS):
        found = await retriever.find.remote(query, release_id)
        if isinstance(found, Unavailable):
            release_id = found.held_id
            if release_id is None:
                raise no_release()
            continue
        if found.ranking is not None:
            return found, found.ranking
        ranking = await _rank(retriever, scorer, found.task, found.release_id)
        if isinstance(ranking, Ranking):
            return found, ranking
        release_id = ranking.held_id
    raise ReleaseNotFoundError("retriever and scorer hold no release in common yet; try again")


async def _rank(
    retriever: Handle, scorer: Handle, task: RankTask, release_id: str
) -> Ranking | Unavailable:
    near = scorer.options(session_id=task.user_id)
    for is_last in (False, True):
        try:
            async with asyncio.timeout(_left_s(task)):
                answer: Ranking | Unavailable = await near.rank.remote(task, release_id)
                return answer
        except RayActorError as error:
            if is_last:
                log.warning("answering by CRM: %s", error)
        except (TimeoutError, BackPressureError, RayTaskError) as error:
            log.warning("answering by CRM: %s: %s", type(error).__name__, error)
            break
    answer = await retriever.rank.remote(task, release_id)
    return answer


def _left_s(task: RankTask) -> float | None:
    """Return how long a scorer may take; None if there is no hurry."""
    left_s = task.answer_by_s - time.time() - CRM_S
    return left_s if math.isfinite(left_s) else None


def no_release() -> ReleaseNotFoundError:
    """Return the error of a service to which nothing was promoted yet."""
    return ReleaseNotFoundError("no release is live; promote one")
