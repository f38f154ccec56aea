import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from engine.config import ServingConfig
from engine.models.text_encoder import BaseModelEncoder
from engine.recommender import feed
from engine.recommender.feed import Embedded, Embedder
from engine.recommender.prefix_cache import PrefixCache
from engine.recommender.ranking import Ranking, RankTask, rank
from engine.recommender.release import LoadedRelease
from engine.releases.experiment import Experiment
from engine.serving.groups import Groups
from engine.serving.releases import Challenger, Held, ReleaseHolder
from engine.serving.scorer import MAX_WAITING, Scorer, rank_each, rank_jobs
from engine.state.database import open_database
from engine.state.items import SentItem, items_to_embed, put_items
from engine.types import AnswerMode
from tests.tiny_release import TinyWorld, tiny_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return tiny_world(tmp_path_factory.mktemp("scorer"))


@pytest.fixture(scope="module")
def releases(world: TinyWorld) -> list[LoadedRelease]:
    for seed, release_id in enumerate(("r1", "r2")):
        world.publish(release_id, seed=seed)
    return [world.load(release_id) for release_id in ("r1", "r2")]


@pytest.fixture
def scorer(releases: list[LoadedRelease], tmp_path: Path) -> Iterator[Any]:
    """Return a scorer of a live release and a challenger of the same encoder, without gauges."""
    made = object.__new__(Scorer.func_or_class)         # type: ignore[attr-defined]
    made.database = open_database(f"sqlite:///{tmp_path}/state.db")
    made.releases = ReleaseHolder(lambda *_: None)      # type: ignore[arg-type,return-value]
    hold(made, *releases)
    made._config, made._metrics, made._groups = ServingConfig(), Mock(), {}
    made._cache, made._one_batch = PrefixCache(10**7), asyncio.Lock()
    made._embedder = Embedder(made.database)
    made._embedding = Groups(made._embed_together, MAX_WAITING)
    yield made
    made.database.dispose()


def hold(
    scorer: Any, live: LoadedRelease, challenger: LoadedRelease, *, is_shadow: bool = False
) -> None:
    experiment = Experiment(challenger.release_id, 1.0, is_shadow, 0)
    scorer.releases.held = Held(live, None, Challenger(experiment, challenger))


def test_a_batch_may_hold_jobs_of_two_releases(
    world: TinyWorld, releases: list[LoadedRelease]
) -> None:
    tasks = [
        RankTask(world.profiles.of(user_id), history, np.arange(1, 16), 5, 10)
        for user_id, history in sorted(world.histories.items())[:5]
    ]
    jobs = [(releases[place % 2], task) for place, task in enumerate(tasks)]
    for (release, task), ranking in zip(jobs, rank_jobs(jobs), strict=True):
        [alone] = rank(release, [task])
        assert ranking.release_id == release.release_id
        assert [each.item_id for each in ranking.items] == [each.item_id for each in alone.items]
        assert [each.score for each in ranking.items] == pytest.approx(
            [each.score for each in alone.items], abs=1e-3
        )


def test_two_releases_of_other_seeds_score_otherwise(
    world: TinyWorld, releases: list[LoadedRelease]
) -> None:
    task = RankTask(world.profiles.of("1"), world.histories["1"], np.arange(1, 16), 5, 10)
    first, second = (rank(release, [task])[0].items for release in releases)
    assert [each.score for each in first] != [each.score for each in second]


def test_what_is_wrong_with_one_request_fails_no_other(
    world: TinyWorld, releases: list[LoadedRelease], caplog: pytest.LogCaptureFixture
) -> None:
    tasks = [
        RankTask(world.profiles.of(user_id), history, np.arange(1, 16), 5, 10)
        for user_id, history in sorted(world.histories.items())[:3]
    ]
    tasks[1] = replace(tasks[1], candidates=np.array([10_000]))
    whole = rank_each([(releases[0], tasks[0]), (releases[0], tasks[2])])
    found = rank_each([(releases[0], task) for task in tasks])
    assert isinstance(found[1], IndexError)
    for ranking, expected in zip((found[0], found[2]), whole, strict=True):
        assert isinstance(ranking, Ranking)
        assert isinstance(expected, Ranking)
        assert [each.item_id for each in ranking.items] == [
            each.item_id for each in expected.items
        ]
    assert "a batch of 3 requests failed" in caplog.text
    [alone] = rank_each([(releases[0], tasks[1])])
    assert isinstance(alone, IndexError)


def test_a_text_that_the_live_releases_encoder_cannot_read_is_read_by_the_challengers(
    scorer: Any, releases: list[LoadedRelease], monkeypatch: pytest.MonkeyPatch
) -> None:
    live, challenger = releases
    hold(scorer, live, replace(challenger, item_texts=replace(
        challenger.item_texts, encoder="other"
    )))
    assert live.language is not None
    of_live, encode = live.language.model.base, BaseModelEncoder.encode

    def fussy(self: BaseModelEncoder, texts: list[str]) -> Any:
        if self._model is of_live:
            raise RuntimeError("no such token")
        return encode(self, texts)

    monkeypatch.setattr(BaseModelEncoder, "encode", fussy)
    put_items(scorer.database, [SentItem("new", "New")])
    asyncio.run(scorer.embed_late())
    assert [len(items_to_embed(scorer.database, each.item_texts.encoder, 0, 9))
            for each in scorer.releases.held.answering()] == [1, 0]
    assert not asyncio.run(scorer.embed())


def test_releases_of_one_encoder_are_asked_once_for_texts_to_read(
    scorer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def count(_: Any, encoder: str, *limits: int) -> Any:
        asked.append(encoder)
        return items_to_embed(scorer.database, encoder, *limits)

    monkeypatch.setattr(feed, "items_to_embed", count)
    put_items(scorer.database, [SentItem("new", "New")])
    [found] = asyncio.run(scorer._embed_together([None]))
    assert found == Embedded(1, is_all=True)
    assert len(asked) == 1


def test_prefixes_of_users_are_kept_and_those_of_a_shadow_are_not(
    world: TinyWorld, scorer: Any, releases: list[LoadedRelease]
) -> None:
    task = RankTask(world.profiles.of("1"), world.histories["1"], np.arange(1, 16), 5, 10)
    cache, kept = scorer._cache, []

    def ask(release_id: str) -> None:
        ranking = asyncio.run(scorer.rank(task, release_id))
        assert ranking.mode is AnswerMode.FULL
        kept.append(cache.num_bytes)

    hold(scorer, *releases, is_shadow=True)
    ask("r2")
    ask("r1")
    ask("r2")
    assert kept[0] == 0 < kept[1] == kept[2]
    hold(scorer, *releases)
    ask("r2")
    assert kept[3] > kept[2]
