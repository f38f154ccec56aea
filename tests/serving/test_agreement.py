"""How one release is found for a request, with fake replicas in place of Ray's."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from engine.errors import ReleaseNotFoundError
from engine.recommender.lookup import Found, Query
from engine.recommender.ranking import Ranking, RankTask
from engine.serving.agreement import rank_by_one_release
from engine.serving.releases import Unavailable
from engine.types import AnswerMode, History

TASK = RankTask("u", History.empty(), np.array([1]), 1, 1)


class Call:
    def __init__(self, function: Any) -> None:
        self.function = function

    async def remote(self, *arguments: Any) -> Any:
        return self.function(*arguments)


@dataclass
class FakeRetriever:
    held: list[str]
    """Live, previous."""
    asked: list[str | None] = field(default_factory=list)

    @property
    def find(self) -> Call:
        return Call(self._find)

    def _find(self, _query: Query, release_id: str | None) -> Found | Unavailable:
        self.asked.append(release_id)
        if not self.held or release_id not in (None, *self.held):
            return Unavailable(release_id, self.held[0] if self.held else None)
        return Found(release_id or self.held[0], 0, [], TASK)


@dataclass
class FakeScorer:
    held: list[str]

    @property
    def rank(self) -> Call:
        return Call(self._rank)

    def _rank(self, _task: RankTask, release_id: str) -> Ranking | Unavailable:
        if release_id not in self.held:
            return Unavailable(release_id, self.held[0] if self.held else None)
        return Ranking(release_id, AnswerMode.FULL, [])


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


@pytest.mark.parametrize(("retriever", "scorer"), [([], ["a"]), (["a"], []), (["a"], ["b"])])
def test_no_release_in_common_is_an_error(retriever: list[str], scorer: list[str]) -> None:
    with pytest.raises(ReleaseNotFoundError):
        answering_release(retriever, scorer)
