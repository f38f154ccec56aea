"""HTTP in and out: body -> checks -> Retriever, Scorer (one release) -> answer.

A name that a route uses must be bound above the class: `serve.ingress` pickles the routes, with
the module as it is by then.
"""

import asyncio
import logging
import time
import uuid
from dataclasses import asdict
from typing import Annotated

import ray
from fastapi import Depends, FastAPI, Path, Query, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.context import _get_global_client

from engine.config import ServingConfig
from engine.recommender import lookup
from engine.recommender.ranking import Ranking
from engine.serving import checks, faults, pages
from engine.serving.access import Access, Right
from engine.serving.agreement import Handle, no_release, rank_by_one_release
from engine.serving.logs import log_with_serve
from engine.serving.metrics import AnswerMetrics
from engine.serving.records import Records, impression_of
from engine.serving.releases import ReplicaState, Unavailable
from engine.serving.retriever import SentEvent, SentUser
from engine.serving.schemas import (
    ERRORS,
    MAX_BODY_BYTES,
    CatalogueAnswer,
    DeletionAnswer,
    EventAnswer,
    EventsAnswer,
    EventsRequest,
    ExplanationAnswer,
    Fields,
    HealthAnswer,
    HistoryEvent,
    HistorySummary,
    ItemAnswer,
    ItemsAnswer,
    ItemsRequest,
    NamedItemAnswer,
    ReadyAnswer,
    RecommendAnswer,
    RecommendRequest,
    ReleaseAnswer,
    ReplicaAnswer,
    ScoreRequest,
    SentItemAnswer,
    SentItemsAnswer,
    SentUserAnswer,
    SentUsersAnswer,
    UserHistoryAnswer,
    UsersAnswer,
    UsersRequest,
)
from engine.state.items import SentItem

api = FastAPI(
    title="Lifelora", responses=ERRORS,
    description="Recommendations by one shared language model and a mix of adapters per user.",
    max_body_size=MAX_BODY_BYTES,
)
faults.install(api)
api.include_router(pages.router)

log = logging.getLogger(__name__)

BROADCAST_TIMEOUT_S = 5.0
EMBED_TIMEOUT_S = 5.0
"""How long who sends items waits until their texts are read; that goes on afterwards."""
UserId = Annotated[str, Path(min_length=1, max_length=200, pattern=r"^[^\x00]+$")]
Limit = Annotated[int, Query(ge=1, le=1000)]
Text = Annotated[str, Query(max_length=200, pattern=r"^[^\x00]*$")]
Key = Annotated[
    HTTPAuthorizationCredentials | None,
    Depends(HTTPBearer(auto_error=False, description="a key of the service, if it has keys")),
]


def listening_hosts() -> list[str]:
    """Return the addresses on which Serve's proxies listen; gRPC ones listen on all."""
    client = _get_global_client()
    assert client is not None           # this runs in a replica, so there is a controller
    http, grpc = ray.get([
        client._controller.get_http_config.remote(), client._controller.get_grpc_config.remote(),
    ])
    hosts = [http.host] if http.host else []
    return [*hosts, "0.0.0.0"] if grpc.grpc_servicer_functions else hosts


def _tuples(fields: Fields) -> dict[str, tuple[str, ...]]:
    return {name: tuple(values) for name, values in fields.items() if values}


def _text(key: HTTPAuthorizationCredentials | None) -> str | None:
    return None if key is None else key.credentials


@serve.deployment(name="Ingress", max_ongoing_requests=100)
@serve.ingress(api)
class Ingress:
    """The only deployment that speaks HTTP."""

    def __init__(
        self, config: ServingConfig, retriever: Handle, scorer: Handle
    ) -> None:
        log_with_serve()
        self.metrics = AnswerMetrics()
        self.records = Records(retriever, scorer, self.metrics)     # `__del__` reads it
        self.access = Access.of_environment()
        self.access.check_listeners(listening_hosts())
        self.config = config
        self.retriever = retriever
        self.scorer = scorer

    async def __del__(self) -> None:
        """Store what is not stored yet; Serve waits for it."""
        await self.records.close()

    @api.post("/v1/recommend")
    async def recommend(self, request: RecommendRequest) -> RecommendAnswer:
        """Return the best items for a user or a guest."""
        asked_s = time.time()
        query = checks.recommend_query(request, self.config)
        answer, found, ranking = await self._answer(query)
        answer.request_id = uuid.uuid4().hex
        if request.record and self.config.impression_days > 0:
            given = impression_of(ranking, answer.request_id, query.user_id, int(asked_s))
            self.records.keep(given)
            if found.shadow_id is not None:
                self.records.shadow(query, found.shadow_id, given, query.answer_by_s - asked_s)
        return answer

    @api.post("/v1/score")
    async def score(self, request: ScoreRequest) -> RecommendAnswer:
        """Return all scores of the items named, best first."""
        answer, _, _ = await self._answer(checks.score_query(request, self.config))
        return answer

    @api.post("/v1/events")
    async def append(self, request: EventsRequest, key: Key) -> EventsAnswer:
        """Store interactions; they are durable, and used by the next answer, on return."""
        self.access.require(Right.EVENTS, _text(key))
        checks.check_events(request, self.config)
        sent = [SentEvent(**dict(event)) for event in request.events]
        statuses = await self.retriever.append.remote(sent)
        if isinstance(statuses, Unavailable):
            raise no_release()
        self.metrics.count_events(status.state for status in statuses)
        return EventsAnswer(events=[
            EventAnswer(
                index=index, event_id=event.event_id, status=status.state, reason=status.reason
            )
            for index, (event, status) in enumerate(zip(sent, statuses, strict=True))
        ])

    @api.put("/v1/items")
    async def put_items(self, request: ItemsRequest, key: Key) -> SentItemsAnswer:
        """Add, change or withdraw items; they are durable, and so answered, on return."""
        self.access.require(Right.ADMIN, _text(key))
        checks.check_items(request, self.config)
        items = [
            SentItem(item.item_id, item.title, _tuples(item.fields), item.is_withdrawn)
            for item in request.items
        ]
        statuses = await self.retriever.put_items.remote(items)
        if isinstance(statuses, Unavailable):
            raise no_release()
        self.metrics.count_items(status.state for status in statuses)
        return SentItemsAnswer(is_embedded=await self._embed(), items=[
            SentItemAnswer(
                index=index, item_id=item.item_id, status=status.state, reason=status.reason
            )
            for index, (item, status) in enumerate(zip(items, statuses, strict=True))
        ])

    @api.put("/v1/users")
    async def put_users(self, request: UsersRequest, key: Key) -> SentUsersAnswer:
        """Store profiles; they are durable, and used by the next answer, on return."""
        self.access.require(Right.ADMIN, _text(key))
        checks.check_users(request, self.config)
        users = [SentUser(user.user_id, _tuples(user.fields)) for user in request.users]
        statuses = await self.retriever.put_users.remote(users)
        if isinstance(statuses, Unavailable):
            raise no_release()
        return SentUsersAnswer(users=[
            SentUserAnswer(
                index=index, user_id=user.user_id, status=status.state, reason=status.reason
            )
            for index, (user, status) in enumerate(zip(users, statuses, strict=True))
        ])

    @api.get("/v1/catalogue")
    async def catalogue(self) -> CatalogueAnswer:
        """Return how many items there are, what may be said of them, and limits of requests."""
        facts = await self.retriever.catalogue.remote()
        if isinstance(facts, Unavailable):
            raise no_release()
        ranking = self.config.ranking
        return CatalogueAnswer(
            **asdict(facts), max_k=ranking.max_k, max_history=ranking.max_history
        )

    @api.get("/v1/items")
    async def search(self, text: Text = "", limit: Limit = 20) -> ItemsAnswer:
        """Return the item whose id is the text, then those whose titles contain it, popular ones
        first.
        """
        items = await self.retriever.search.remote(text, limit)
        if isinstance(items, Unavailable):
            raise no_release()
        return ItemsAnswer(items=[NamedItemAnswer.model_validate(item) for item in items])

    @api.get("/v1/users")
    async def users(self, key: Key, prefix: Text = "", limit: Limit = 20) -> UsersAnswer:
        """Return ids of users with stored events that begin with a prefix."""
        self.access.require(Right.EVENTS, _text(key))
        return UsersAnswer(user_ids=await self.retriever.users.remote(prefix, limit))

    @api.get("/v1/users/{user_id:path}/history")
    async def history(self, user_id: UserId, limit: Limit = 100) -> UserHistoryAnswer:
        """Return a user's newest events."""
        events = await self.retriever.user_events.remote(user_id, limit)
        if isinstance(events, Unavailable):
            raise no_release()
        return UserHistoryAnswer(
            user_id=user_id, events=[HistoryEvent.model_validate(event) for event in events]
        )

    @api.delete("/v1/users/{user_id:path}")
    async def delete(self, user_id: UserId, key: Key) -> DeletionAnswer:
        """Remove a user's events and what is computed of them, and keep training from learning of
        them. To repeat it removes what came since.
        """
        self.access.require(Right.ADMIN, _text(key))
        deletion = await self.retriever.delete.remote(user_id)
        try:
            await self.scorer.broadcast("forget").results_async(timeout_s=BROADCAST_TIMEOUT_S)
        except RayActorError as error:      # and with it what it kept
            log.warning("a scorer died: %s", error)
        except TimeoutError:
            raise TimeoutError(
                "the user is deleted, but a scorer does not answer and may keep a prefix; try again"
            ) from None
        return DeletionAnswer.model_validate(deletion)

    @api.get("/v1/release")
    async def release(self) -> ReleaseAnswer:
        """Return which release every replica holds, and what it refused."""
        return await self._state()

    @api.get("/readyz")
    async def ready(self, response: Response) -> ReadyAnswer:
        """Tell whether all replicas have one release in common; 503 if not."""
        state = await self._state()
        held = [
            {replica.release_id, replica.previous_id} - {None}
            for replica in (*state.retriever, *state.scorer)
        ]
        is_ready = bool(state.retriever and state.scorer and set.intersection(*held))
        response.status_code = 200 if is_ready else 503
        return ReadyAnswer(is_ready=is_ready, **dict(state))

    @api.get("/healthz")
    async def health(self) -> HealthAnswer:
        """Tell that the process answers."""
        return HealthAnswer()

    async def _answer(
        self, query: lookup.Query
    ) -> tuple[RecommendAnswer, lookup.Found, Ranking]:
        """Return the answer, and what it was made of."""
        start = time.perf_counter()
        found, ranking = await rank_by_one_release(self.retriever, self.scorer, query)
        total_ms = round((time.perf_counter() - start) * 1000, 3)
        stage_ms = {**found.stage_ms, **ranking.stage_ms, "total": total_ms}
        self.metrics.count_answer(ranking, stage_ms)
        explanation = ranking.explanation
        answer = RecommendAnswer(
            release_id=ranking.release_id, mode=ranking.mode,
            items=[ItemAnswer.model_validate(item) for item in ranking.items],
            history=HistorySummary(
                length=found.history_length,
                newest=[HistoryEvent.model_validate(event) for event in found.newest],
            ),
            stage_ms=stage_ms,
            explanation=(
                None if explanation is None else ExplanationAnswer.model_validate(explanation)
            ),
        )
        return answer, found, ranking

    async def _embed(self) -> bool:
        """Have a scorer read the texts of items that were sent; tell whether it did in time."""
        response = self.scorer.embed.remote()
        try:
            async with asyncio.timeout(EMBED_TIMEOUT_S):
                return bool(await response)
        except TimeoutError:
            response.cancel()   # type: ignore[no-untyped-call]  # it would take a request's place
            log.info("items are stored; a scorer is still reading their texts")
        except Exception as error:  # noqa: BLE001  whatever it is, the items are stored
            log.warning("items are stored, and not embedded yet: %s", error)
        return False

    async def _state(self) -> ReleaseAnswer:
        """Ask every replica."""
        groups: list[list[ReplicaState]] = [
            await handle.broadcast("state").results_async(timeout_s=BROADCAST_TIMEOUT_S)
            for handle in (self.retriever, self.scorer)
        ]
        ids = {state.release_id for group in groups for state in group}
        retriever, scorer = (
            [ReplicaAnswer.model_validate(state) for state in group] for group in groups
        )
        return ReleaseAnswer(
            release_id=ids.pop() if len(ids) == 1 else None, retriever=retriever, scorer=scorer
        )
