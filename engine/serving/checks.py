"""Request bodies -> queries: the limits that depend on the configuration.

Every RequestError begins with the names of the fields at fault.
"""

import math
import time
from collections.abc import Sequence

from engine.config import ServingConfig
from engine.errors import RequestError
from engine.recommender.candidates import Filters
from engine.recommender.histories import GuestItem
from engine.recommender.lookup import Query
from engine.serving.schemas import (
    Asker,
    EventsRequest,
    ItemsRequest,
    RecommendRequest,
    ScoreRequest,
    UsersRequest,
)


def recommend_query(request: RecommendRequest, config: ServingConfig) -> Query:
    """Return the query of POST /v1/recommend."""
    if request.k > config.ranking.max_k:
        raise RequestError(f"k: {request.k} is more than {config.ranking.max_k}")
    filters = request.filters
    exclude_seen = filters.exclude_seen
    if exclude_seen is None:
        exclude_seen = request.candidates is None
    _check_asker(request, config)
    _check_candidates(request.candidates or [], config)
    return Query(
        k=request.k, user_id=request.user_id, guest=_guest(request),
        item_ids=request.candidates,
        filters=Filters(exclude_seen, filters.exclude_items, filters.fields),
        with_explanation=request.explain or request.explain_gates,
        with_gates=request.explain_gates, answer_by_s=_answer_by(request, config),
    )


def score_query(request: ScoreRequest, config: ServingConfig) -> Query:
    """Return the query of POST /v1/score: every candidate is scored by every model."""
    _check_asker(request, config)
    _check_candidates(request.candidates, config)
    return Query(
        k=len(request.candidates), user_id=request.user_id, guest=_guest(request),
        item_ids=request.candidates, is_scored_whole=True,
        answer_by_s=_answer_by(request, config),
    )


def check_events(request: EventsRequest, config: ServingConfig) -> None:
    """Raise RequestError if there are too many events."""
    _check_number("events", len(request.events), config)


def check_items(request: ItemsRequest, config: ServingConfig) -> None:
    """Raise RequestError for too many items, one without a title, or one that is named twice."""
    _check_bulk("items", [item.item_id for item in request.items], config)
    for place, item in enumerate(request.items):
        if item.title is None and not item.is_withdrawn:
            raise RequestError(f"items.{place}.title: an item on offer needs a title")
        if item.title is None and item.fields:
            raise RequestError(f"items.{place}.fields: without a title the item stays as it was")


def check_users(request: UsersRequest, config: ServingConfig) -> None:
    """Raise RequestError for too many profiles, or two of one user."""
    _check_bulk("users", [user.user_id for user in request.users], config)


def _check_bulk(name: str, ids: Sequence[str], config: ServingConfig) -> None:
    _check_number(name, len(ids), config)
    _check_once(name, ids)


def _check_number(name: str, number: int, config: ServingConfig) -> None:
    if number > config.max_events:
        raise RequestError(f"{name}: {number} are more than {config.max_events}")


def _check_once(name: str, ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for place, each in enumerate(ids):
        if each in seen:
            raise RequestError(f"{name}.{place}: {each!r} is named twice")
        seen.add(each)


def _answer_by(request: Asker, config: ServingConfig) -> float:
    """Return the Unix time by which the answer is wanted."""
    deadline_ms = request.deadline_ms or config.deadline_ms
    return math.inf if deadline_ms is None else time.time() + deadline_ms / 1000


def _check_asker(request: Asker, config: ServingConfig) -> None:
    if (request.user_id is None) == (request.history is None):
        raise RequestError("user_id, history: give exactly one of them")
    if len(request.history or []) > config.ranking.max_history:
        raise RequestError(
            f"history: {len(request.history or [])} items are more than "
            f"{config.ranking.max_history}"
        )


def _check_candidates(candidates: Sequence[str], config: ServingConfig) -> None:
    if len(candidates) > config.ranking.max_candidates:
        raise RequestError(
            f"candidates: {len(candidates)} are more than {config.ranking.max_candidates}"
        )
    _check_once("candidates", candidates)


def _guest(request: Asker) -> list[GuestItem] | None:
    if request.history is None:
        return None
    return [GuestItem(item.item_id, item.rating, item.label) for item in request.history]
