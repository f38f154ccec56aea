"""A user's requests find the scorer that kept their prefix."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import yaml
from ray import serve

from engine.config import ServingConfig
from engine.recommender.lookup import Found, Query
from engine.recommender.ranking import Ranking, RankTask
from engine.serving.ingress import Ingress
from engine.types import AnswerMode, History, Profile
from tests.serving.conftest import REPO, Service

pytestmark = pytest.mark.ray


class Retriever:
    """Finds one item for everybody."""

    async def find(self, query: Query, _release_id: str | None) -> Found:
        task = RankTask(Profile(query.user_id or ""), History.empty(), np.array([1]), 1, 1)
        return Found("r", 0, [], task)

    async def record(self, _impressions: list[Any]) -> None:
        """Nothing is kept."""


class Scorer:
    """Answers with its process in place of a time."""

    async def rank(self, _task: RankTask, release_id: str) -> Ranking:
        return Ranking(release_id, AnswerMode.FULL, [], stage_ms={"process": os.getpid()})


def router_of_production() -> dict[str, Any]:
    config = yaml.safe_load((REPO / "serve_configs/prod.yaml").read_text())
    [scorer] = [each for each in config["applications"][0]["deployments"]
                if each["name"] == "Scorer"]
    found: dict[str, Any] = scorer["request_router_config"]
    return found


@pytest.fixture
def three_scorers(service: Service) -> Iterator[str]:
    """Return the path of an ingress before three scorers."""
    light = {"ray_actor_options": {"num_cpus": 0}}
    scorers = serve.deployment(Scorer).options(
        num_replicas=3, request_router_config=router_of_production(), **light
    )
    retriever = serve.deployment(Retriever).options(**light)
    serve.run(
        Ingress.options(**light).bind(ServingConfig(), retriever.bind(), scorers.bind()),
        name="sticky", route_prefix="/sticky",
    )
    yield "/sticky"
    serve.delete("sticky")


def test_a_users_requests_go_to_one_scorer_and_users_to_all(
    service: Service, three_scorers: str
) -> None:
    def scorer_of(user_id: str) -> float:
        answer = service.post(f"{three_scorers}/v1/recommend", {"user_id": user_id})
        assert answer.status_code == 200, answer.text
        found: float = answer.json()["stage_ms"]["process"]
        return found

    users = [f"user {number}" for number in range(20)]
    first = [scorer_of(user_id) for user_id in users]
    assert len(set(first)) == 3
    assert [scorer_of(user_id) for user_id in users[::-1]] == first[::-1]
