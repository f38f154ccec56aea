"""One request, one release: retriever and scorer must answer from the same.

    Retriever.find(live)  ->  Found by r  ->  Scorer.rank by r  ->  Ranking by r

While a promotion reaches the replicas they may differ. Then the scorer names the release that it
holds, and the retriever, which keeps the previous one, answers again from that.
"""

from typing import Any

from ray.serve.handle import DeploymentHandle

from engine.errors import ReleaseNotFoundError
from engine.recommender.lookup import Found, Query
from engine.recommender.ranking import Ranking
from engine.serving.releases import Unavailable

Handle = DeploymentHandle[Any]
ATTEMPTS = 3


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
        ranking = await scorer.rank.remote(found.task, found.release_id)
        if isinstance(ranking, Ranking):
            return found, ranking
        release_id = ranking.held_id
    raise ReleaseNotFoundError("retriever and scorer hold no release in common yet; try again")


def no_release() -> ReleaseNotFoundError:
    """Return the error of a service to which nothing was promoted yet."""
    return ReleaseNotFoundError("no release is live; promote one")
