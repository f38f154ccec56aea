import numpy as np
import pytest

from engine.recommender.loading import load_release
from engine.recommender.ranking import RankTask, rank
from engine.recommender.release import LoadedRelease
from engine.serving.scorer import rank_jobs
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

