"""One request, one release: retriever and scorer must answer from the same.

    Retriever.find(live)  ->  Found by r  ->  Scorer.rank by r  ->  Ranking by r

While a promotion or an experiment reaches the replicas they may differ. Then the scorer names the
release that it holds, and the retriever, which keeps the previous one, answers again from that.

A user's requests go to the same scorer where the config routes by session: it may have kept their
prefix. Where a scorer dies, they are asked once more; where none answers in time, all are too busy
or one fails, the retriever ranks by its CRM.
"""

import asyncio
import logging
import math
import time
from dataclasses import replace
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
SCORER_S = 0.04
"""What the scorer leaves of it: that part, and the way back."""

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


async def rank_by(
    retriever: Handle, scorer: Handle, query: Query, release_id: str
) -> Ranking | None:
    """Return how one release ranks; None where retriever or scorer does not hold it."""
    found = await retriever.find.remote(query, release_id)
    if isinstance(found, Unavailable):
        return None
    ranking = found.ranking or await _rank(retriever, scorer, found.task, release_id)
    return ranking if isinstance(ranking, Ranking) else None


async def _rank(
    retriever: Handle, scorer: Handle, task: RankTask, release_id: str
) -> Ranking | Unavailable:
    near = scorer.options(session_id=task.profile.user_id)
    hurried = replace(task, answer_by_s=task.answer_by_s - SCORER_S)
    for is_last in (False, True):
        left_s = task.answer_by_s - time.time() - CRM_S
        if left_s <= 0:
            break
        response = near.rank.remote(hurried, release_id)
        try:
            async with asyncio.timeout(None if left_s == math.inf else left_s):
                answer: Ranking | Unavailable = await response
                return answer
        except RayActorError as error:
            if is_last:
                log.warning("answering by CRM: %s", error)
        except TimeoutError:
            # Else it would be ranked for nobody.
            response.cancel()   # type: ignore[no-untyped-call]
            log.info("answering by CRM: no scorer answered in time")
            break
        except BackPressureError as error:
            log.info("answering by CRM: %s", error)
            break
        except RayTaskError as error:
            log.error("answering by CRM, the scorer failed: %s", error)
            break
    answer = await retriever.rank.remote(task, release_id)
    return answer


def no_release() -> ReleaseNotFoundError:
    """Return the error of a service to which nothing was promoted yet."""
    return ReleaseNotFoundError("no release is live; promote one")
