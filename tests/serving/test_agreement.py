"""How one release is found for a request, with fake replicas in place of Ray's."""

import asyncio
import math
import time
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError

from engine.errors import ReleaseNotFoundError
from engine.recommender.lookup import Found, Query
from engine.recommender.ranking import Ranking, RankTask
from engine.serving.agreement import SCORER_S, rank_by, rank_by_one_release
from engine.serving.releases import Unavailable
from engine.types import AnswerMode, History, Profile

TASK = RankTask(Profile("u"), History.empty(), np.array([1]), 1, 1)


class Call:
    def __init__(self, function: Any) -> None:
        self.function = function

    def remote(self, *arguments: Any) -> asyncio.Future[Any]:
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        answered.set_result(self.function(*arguments))
        return answered


@dataclass
class FakeRetriever:
    held: list[str]
    """Live, previous."""
    asked: list[str | None] = field(default_factory=list)
    task: RankTask = TASK

    @property
    def find(self) -> Call:
        return Call(self._find)

    def _find(self, _query: Query, release_id: str | None) -> Found | Unavailable:
        self.asked.append(release_id)
        if not self.held or release_id not in (None, *self.held):
            return Unavailable(release_id, self.held[0] if self.held else None)
        return Found(release_id or self.held[0], 0, [], self.task)

    @property
    def rank(self) -> Call:
        return Call(lambda _task, release_id: Ranking(release_id, AnswerMode.CRM, []))


@dataclass
class FakeScorer:
    held: list[str]
    sessions: list[str] = field(default_factory=list)

    def options(self, *, session_id: str) -> "FakeScorer":
        self.sessions.append(session_id)
        return self

    @property
    def rank(self) -> Call:
        return Call(self._rank)

    def _rank(self, _task: RankTask, release_id: str) -> Ranking | Unavailable:
        if release_id not in self.held:
            return Unavailable(release_id, self.held[0] if self.held else None)
        return Ranking(release_id, AnswerMode.FULL, [])


class Response:
    """An answer under way."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task

    def __await__(self) -> Any:
        return asyncio.shield(self.task).__await__()

    def cancel(self) -> None:
        self.task.cancel()


class FailingScorer:
    """Does one thing after another: raises an error, waits for some seconds, or answers."""

    def __init__(self, *steps: Exception | float | None) -> None:
        self.steps = list(steps)
        self.cancelled = 0
        self.asked: list[RankTask] = []

    def options(self, **_: Any) -> "FailingScorer":
        return self

    @property
    def rank(self) -> Any:
        async def answer(release_id: str) -> Ranking:
            step = self.steps.pop(0)
            if isinstance(step, Exception):
                raise step
            try:
                await asyncio.sleep(step or 0)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            return Ranking(release_id, AnswerMode.FULL, [])

        def remote(task: RankTask, release_id: str) -> asyncio.Future[Ranking]:
            """As Ray's response: to leave it does not cancel it."""
            self.asked.append(task)
            return Response(asyncio.ensure_future(answer(release_id)))   # type: ignore[return-value]

        return Mock(remote=remote)


def answering_release(retriever: list[str], scorer: list[str]) -> str:
    """Return the release that both halves of an answer come from."""
    halves: list[Any] = [FakeRetriever(retriever), FakeScorer(scorer)]
    found, ranking = asyncio.run(rank_by_one_release(*halves, Query(k=1, user_id="u")))
    assert found.release_id == ranking.release_id
    return str(ranking.release_id)


@pytest.mark.parametrize(("retriever", "scorer", "expected"), [
    (["a"], ["a"], "a"),
    (["b", "a"], ["b", "a"], "b"),
    (["b", "a"], ["a"], "a"),               # the scorer is still loading, or refused b
    (["a"], ["b", "a"], "a"),               # the retriever is behind
    (["b", "a"], ["a", "b"], "b"),          # both are rolling, in opposite directions
])
def test_both_halves_answer_from_one_release(
    retriever: list[str], scorer: list[str], expected: str
) -> None:
    assert answering_release(retriever, scorer) == expected


def test_a_users_requests_have_one_session() -> None:
    scorer = FakeScorer(["a"])
    halves: list[Any] = [FakeRetriever(["a"]), scorer]
    asyncio.run(rank_by_one_release(*halves, Query(k=1, user_id="u")))
    assert scorer.sessions == ["u"]


@pytest.mark.parametrize(("retriever", "scorer"), [([], ["a"]), (["a"], []), (["a"], ["b"])])
def test_no_release_in_common_is_an_error(retriever: list[str], scorer: list[str]) -> None:
    with pytest.raises(ReleaseNotFoundError):
        answering_release(retriever, scorer)


@pytest.mark.parametrize(("retriever", "scorer", "expected"), [
    (["a", "b"], ["a", "b"], "b"), (["a"], ["a", "b"], None), (["a", "b"], ["a"], None),
    ([], [], None),
])
def test_a_shadow_is_of_its_release_or_of_none(
    retriever: list[str], scorer: list[str], expected: str | None
) -> None:
    halves: list[Any] = [FakeRetriever(retriever), FakeScorer(scorer)]
    ranking = asyncio.run(rank_by(*halves, Query(k=1, user_id="u"), "b"))
    assert (None if ranking is None else ranking.release_id) == expected


DIED, BUSY = ActorDiedError(), BackPressureError(5, 4)
BUG = RayTaskError("rank", "the trace", KeyError("a bug")).as_instanceof_cause()


@pytest.mark.parametrize(("steps", "left_s", "mode", "unused"), [
    ([None], 60, AnswerMode.FULL, 0),
    ([DIED, None], 60, AnswerMode.FULL, 0),         # another replica
    ([DIED, None], None, AnswerMode.FULL, 0),
    ([DIED, DIED, None], 60, AnswerMode.CRM, 1),
    ([BUSY, None], 60, AnswerMode.CRM, 1),
    ([BUG, None], 60, AnswerMode.CRM, 1),
    ([30.0, None], 0.1, AnswerMode.CRM, 1),
    ([DIED, 30.0], 0.1, AnswerMode.CRM, 0),         # once more, within the same time
    ([None], 0.01, AnswerMode.CRM, 1),              # no time to ask
    ([0.01], None, AnswerMode.FULL, 0),
])
def test_where_no_scorer_answers_in_time_the_crm_does(
    steps: list[Exception | float | None], left_s: float | None, mode: AnswerMode, unused: int
) -> None:
    answer_by_s = math.inf if left_s is None else time.time() + left_s
    retriever: Any = FakeRetriever(["a"], task=replace(TASK, answer_by_s=answer_by_s))
    scorer: Any = FailingScorer(*steps)
    begin_s = time.monotonic()

    async def ask() -> Ranking:
        _, found = await rank_by_one_release(retriever, scorer, Query(k=1, user_id="u"))
        await asyncio.sleep(0.01)
        return found

    ranking = asyncio.run(ask())
    assert ranking.mode is mode
    assert scorer.cancelled == (30.0 in steps)      # nobody waits for it any more
    assert all(task.answer_by_s == answer_by_s - SCORER_S for task in scorer.asked)
    assert len(scorer.steps) == unused
    assert time.monotonic() - begin_s < 20
