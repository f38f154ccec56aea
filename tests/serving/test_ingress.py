"""Ingress and Retriever without Ray: what they do beside answering."""

import asyncio
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from ray.exceptions import RayActorError

from engine.config import ServingConfig
from engine.errors import UnknownItemError
from engine.recommender.feed import Feed
from engine.recommender.lookup import Found, Query
from engine.recommender.ranking import Ranking
from engine.serving.access import Access
from engine.serving.ingress import Ingress
from engine.serving.records import MAX_SHADOWS, Records
from engine.serving.releases import Unavailable
from engine.serving.retriever import ItemStatus, Retriever
from engine.serving.schemas import ItemsRequest, RecommendAnswer, RecommendRequest
from engine.state.database import open_database
from engine.state.deletions import Deletion
from engine.state.impressions import Impression, read_impressions, record
from engine.state.items import ItemState, SentItem
from engine.types import AnswerMode
from tests.tiny_release import tiny_world


class Replicas:
    """Stands for both handles; keeps what was asked of them."""

    def __init__(self) -> None:
        self.recorded: list[Impression] = []
        self.broadcasts: list[str] = []
        self.is_away = False
        self.shadow_id: str | None = None
        self.delay_s = 1.1
        self.held = {"r", "s"}
        self.asked: list[Query] = []
        self.problem: Any = None
        """What a shadow runs into."""
        self.find, self.delete, self.record = (
            Mock(remote=each) for each in (self._find, self._delete, self._record)
        )

    async def _find(self, query: Query, release_id: str | None) -> Found | Unavailable:
        self.asked.append(query)
        await asyncio.sleep(self.delay_s)
        if release_id is not None and self.problem is not None:
            await self.problem()
        release_id = release_id or "r"
        if release_id not in self.held:
            return Unavailable(release_id, "r")
        ranking = Ranking(release_id, AnswerMode.POPULAR, [])
        return Found(release_id, 0, [], ranking=ranking, shadow_id=self.shadow_id)

    async def _delete(self, user_id: str) -> Deletion:
        return Deletion(user_id, 5, 0)

    async def _record(self, impressions: list[Impression]) -> None:
        await asyncio.sleep(0.05)
        if self.is_away:
            raise OSError("away")
        self.recorded += impressions

    def options(self, **_: Any) -> "Replicas":
        return self

    def broadcast(self, method: str) -> Any:
        async def answered(timeout_s: float) -> None:
            self.broadcasts.append(method)

        return Mock(results_async=answered)


@pytest.fixture
def ingress() -> Any:
    """Return an ingress as Serve makes it, but for metrics and listeners."""
    plain = Ingress.func_or_class.__bases__[0]      # type: ignore[attr-defined]
    # Serve awaits `__del__`; Python would not.
    kind = type("Plain", (plain,), {"close": plain.__del__, "__del__": lambda self: None})
    made = object.__new__(kind)
    made.access, made.metrics, made.config = Access(), Mock(), ServingConfig()
    made.retriever = made.scorer = Replicas()
    made.records = Records(made.retriever, made.scorer, made.metrics)
    return made


def test_a_deletion_empties_the_caches_of_all_scorers(ingress: Any) -> None:
    answer = asyncio.run(ingress.delete("ann", None))
    assert (answer.user_id, answer.deleted_s) == ("ann", 5)
    assert ingress.scorer.broadcasts == ["forget"]


def test_an_impression_has_the_time_of_the_request_and_is_stored_before_the_end(
    ingress: Any,
) -> None:
    """A deletion while the answer is made must find it older."""
    async def ask() -> None:
        await ingress.recommend(RecommendRequest(user_id="ann"))
        assert ingress.retriever.recorded == []
        await ingress.close()

    begin_s = int(time.time())
    asyncio.run(ask())
    [impression] = ingress.retriever.recorded
    assert begin_s <= impression.asked_s < begin_s + 1 + 1
    assert impression.asked_s < time.time() - 1
    assert impression.user_id == "ann"
    assert len(impression.request_id) == 32


def test_answers_that_cannot_be_stored_are_given_and_counted(
    ingress: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask() -> None:
        ingress.retriever.is_away = True
        await ingress.recommend(RecommendRequest(user_id="ann"))
        await ingress.close()

    asyncio.run(ask())
    assert ingress.metrics.count_lost_impression.call_count == 1
    assert "is not stored: OSError" in caplog.text
    assert "ann" not in caplog.text


def ask_all(
    ingress: Any, *requests: RecommendRequest, is_closed: bool = False
) -> list[RecommendAnswer]:
    """Return the answers to requests that come together, and wait for what is stored of them."""
    async def ask() -> list[RecommendAnswer]:
        ingress.retriever.delay_s = 0.01
        answers = await asyncio.gather(*map(ingress.recommend, requests))
        while not is_closed and ingress.records._shadows:
            await asyncio.sleep(0.01)
        await ingress.close()
        return list(answers)

    return asyncio.run(ask())


def test_a_shadow_is_kept_and_not_given(ingress: Any) -> None:
    ingress.retriever.shadow_id = "s"
    [answer] = ask_all(ingress, RecommendRequest(user_id="ann", k=3, explain=True))
    assert answer.release_id == "r"
    given, shadow = sorted(ingress.retriever.recorded, key=lambda each: each.release_id)
    assert (given.request_id, given.release_id, given.shadow_of) == (answer.request_id, "r", None)
    assert shadow.shadow_of == answer.request_id != shadow.request_id
    assert (shadow.release_id, shadow.user_id, shadow.asked_s) == ("s", "ann", given.asked_s)
    first, second = ingress.retriever.asked
    assert (first.k, first.user_id) == (second.k, second.user_id)
    assert (first.with_explanation, second.with_explanation) == (True, False)
    assert second.answer_by_s < time.time() + 11         # nobody waits for it without an end
    ingress.metrics.count_shadow.assert_called_once()


def test_who_is_not_recorded_has_no_shadow(ingress: Any) -> None:
    ingress.retriever.shadow_id = "s"
    ask_all(ingress, RecommendRequest(user_id="ann", record=False))
    ingress.config = ServingConfig(impression_days=0)
    ask_all(ingress, RecommendRequest(user_id="ann"))
    assert len(ingress.retriever.asked) == 2
    assert ingress.retriever.recorded == []


def test_a_shadow_that_cannot_be_had_is_counted(
    ingress: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ingress.retriever.shadow_id = "s"
    ingress.retriever.held = {"r"}
    ask_all(ingress, RecommendRequest(user_id="ann"))
    assert [each.release_id for each in ingress.retriever.recorded] == ["r"]
    assert ingress.metrics.count_lost_shadow.call_count == 1


def test_a_shadow_has_the_time_of_its_request(ingress: Any) -> None:
    ingress.retriever.shadow_id = "s"
    before_s = time.time()
    ask_all(ingress, RecommendRequest(user_id="ann", deadline_ms=300))
    given, shadow = ingress.retriever.asked
    assert given.answer_by_s == pytest.approx(before_s + 0.3, abs=0.2)
    assert shadow.answer_by_s > given.answer_by_s       # it began later
    assert shadow.answer_by_s <= time.time() + 0.3


@pytest.mark.parametrize("is_closed", [False, True])
@pytest.mark.parametrize("problem", ["fails", "hangs"])
def test_what_happens_to_a_shadow_hurts_nobody(
    ingress: Any, caplog: pytest.LogCaptureFixture, problem: str, is_closed: bool
) -> None:
    async def fail() -> None:
        raise FloatingPointError("not a number")

    async def hang() -> None:
        await asyncio.sleep(600)

    ingress.retriever.shadow_id = "s"
    ingress.retriever.problem = {"fails": fail, "hangs": hang}[problem]
    begin_s = time.monotonic()
    [answer] = ask_all(
        ingress, RecommendRequest(user_id="ann", deadline_ms=500), is_closed=is_closed
    )
    assert answer.release_id == "r"
    assert [each.release_id for each in ingress.retriever.recorded] == ["r"]
    assert time.monotonic() - begin_s < 60
    if not is_closed:
        assert ingress.metrics.count_lost_shadow.call_count == 1
        assert "no shadow of" in caplog.text
    ingress.metrics.count_shadow.assert_not_called()
    ingress.metrics.count_lost_impression.assert_not_called()


def test_shadows_do_not_pile_up(ingress: Any) -> None:
    ingress.retriever.shadow_id = "s"
    requests = [RecommendRequest(user_id=str(number)) for number in range(MAX_SHADOWS + 5)]
    answers = ask_all(ingress, *requests)
    assert len(answers) == MAX_SHADOWS + 5
    kept = [each.release_id for each in ingress.retriever.recorded]
    assert (kept.count("r"), kept.count("s")) == (MAX_SHADOWS + 5, MAX_SHADOWS)
    assert ingress.metrics.count_lost_shadow.call_count == 5


@pytest.mark.parametrize("problem", ["slow", "dead", "without a release"])
def test_items_are_stored_also_where_no_scorer_reads_their_texts(
    ingress: Any, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    cancelled: list[bool] = []

    class Response:
        """Like Serve's: who stops waiting for it has not stopped it."""

        def __await__(self) -> Any:
            return self._answer().__await__()

        async def _answer(self) -> bool:
            if problem == "slow":
                await asyncio.sleep(5)
            if problem == "dead":
                raise RayActorError
            return False

        def cancel(self) -> None:
            cancelled.append(True)

    async def put_items(items: list[SentItem]) -> list[ItemStatus]:
        return [ItemStatus(ItemState.STORED)] * len(items)

    monkeypatch.setattr("engine.serving.ingress.EMBED_TIMEOUT_S", 0.05)
    ingress.scorer.embed = Mock(remote=Response)
    ingress.retriever.put_items = Mock(remote=put_items)
    request = ItemsRequest.model_validate({"items": [{"item_id": "1", "title": "One"}]})
    answer = asyncio.run(ingress.put_items(request, None))
    assert [item.status for item in answer.items] == ["stored"]
    assert not answer.is_embedded
    assert cancelled == [True] * (problem == "slow")


def test_where_the_crm_fails_popular_items_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = tiny_world(tmp_path)
    world.publish("r1")
    release = world.load("r1", with_llm=False)
    retriever = object.__new__(Retriever.func_or_class)     # type: ignore[attr-defined]
    retriever.config = ServingConfig()
    retriever.database = open_database(f"sqlite:///{tmp_path}/state.db")
    retriever.feed = Feed(retriever.database)
    user_id = next(user for user in world.histories if release.profiles.of(user).has_values)
    query = Query(k=3, user_id=user_id)
    task = retriever._find(release, query).task
    assert task is not None
    assert retriever._rank(release, task).mode is AnswerMode.CRM

    def fail(*_: Any) -> None:
        raise FloatingPointError("not a number")

    for name in ("score", "retrieval_states"):
        monkeypatch.setattr(release.crm, name, fail)
    found = retriever._find(release, query)
    assert found.ranking.mode is retriever._rank(release, task).mode is AnswerMode.POPULAR
    assert len(found.ranking.items) == len(retriever._rank(release, task).items) == 3
    assert "FloatingPointError" in caplog.text
    with pytest.raises(UnknownItemError):
        retriever._find(release, Query(k=3, user_id=user_id, item_ids=["no such"]))
    retriever.database.dispose()


def test_what_is_kept_no_longer_is_removed(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/state.db")
    now_s = int(time.time())
    retriever = object.__new__(Retriever.func_or_class)     # type: ignore[attr-defined]
    retriever.database = database

    def left(days: int) -> set[str]:
        record(database, [Impression(str(age), None, "r", "crm", now_s - age * 86_400, [])
                          for age in (0, 1, 3)])
        retriever.config = ServingConfig(impression_days=days)
        asyncio.run(retriever.forget_old())
        return set(read_impressions(database, ["0", "1", "3"]))

    assert left(2) == {"0", "1"}
    assert left(30) == {"0", "1", "3"}
    database.dispose()
