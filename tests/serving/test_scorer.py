from dataclasses import replace

import numpy as np
import pytest

from engine.recommender.loading import load_release
from engine.recommender.ranking import Ranking, RankTask, rank
from engine.recommender.release import LoadedRelease
from engine.serving.scorer import rank_each, rank_jobs
from tests.tiny_release import TinyWorld, tiny_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return tiny_world(tmp_path_factory.mktemp("scorer"))


@pytest.fixture(scope="module")
def releases(world: TinyWorld) -> list[LoadedRelease]:
    for seed, release_id in enumerate(("r1", "r2")):
        world.publish(release_id, seed=seed)
    return [
        load_release(world.registry, release_id, model_cache="", device="cpu")
        for release_id in ("r1", "r2")
    ]


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
