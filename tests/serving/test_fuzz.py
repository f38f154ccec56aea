"""Requests drawn from the service's own OpenAPI: no server error, no hang, answers as described."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ray import serve
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from engine.config import RankingConfig, ServingConfig
from engine.serving.ingress import Ingress
from engine.serving.retriever import Retriever
from engine.serving.scorer import Scorer
from tests.serving.conftest import Service, seed_histories

pytestmark = [pytest.mark.ray, pytest.mark.slow]

REQUESTS = 2000
TIMEOUT_S = 20.0
"""A hang, not a slow machine."""
FIELDS = ["genres", "year", "gender", "age"]
"""Of items and users; a field of the other kind is rejected."""
CHECKS: Any = [
    not_a_server_error, content_type_conformance, response_schema_conformance,
    status_code_conformance,
]


@pytest.fixture(scope="module")
def fuzzed(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a service of its own: what is drawn changes items and users."""
    database_url = f"sqlite:///{tmp_path_factory.mktemp('fuzzed')}/state.db"
    seed_histories(service.world, database_url)
    config = ServingConfig(
        database_url=database_url, model_cache=str(service.world.root), device="cpu", threads=1,
        ranking=RankingConfig(max_candidates=30, llm_candidates=3, max_k=20),
    )
    light: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}}
    release = {"user_config": {"registry": service.world.registry_root, "change": 1}}
    halves = [
        kind.options(**light, **release).bind(config)   # type: ignore[attr-defined]
        for kind in (Retriever, Scorer)
    ]
    ingress: Any = Ingress
    serve.run(ingress.options(**light).bind(config, *halves), name="fuzzed", route_prefix="/fuzzed")
    yield f"{service.url}/fuzzed"
    serve.delete("fuzzed")


def made_familiar(case: Any, users: list[str], items: list[str], number: int) -> Any:
    """Name users, items and fields that are there: drawn ones are unknown to the service."""
    def known(value: Any, name: str = "") -> Any:
        if isinstance(value, dict) and name == "fields":
            return dict(zip(FIELDS[number % len(FIELDS) :], value.values(), strict=False))
        if isinstance(value, dict):
            return {key: known(each, key) for key, each in value.items()}
        if isinstance(value, list):
            return [known(each, name) for each in value]
        if isinstance(value, str) and name in ("user_id", "item_id", "candidates"):
            ids = users if name == "user_id" else items
            return ids[(number + len(value)) % len(ids)]
        return value

    case.body = known(case.body)
    case.path_parameters = known(case.path_parameters)
    return case


def test_requests_drawn_from_the_interface_find_no_fault(service: Service, fuzzed: str) -> None:
    schema = schemathesis.openapi.from_url(f"{fuzzed}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    users, items = sorted(service.world.histories), service.world.catalogue.item_ids[1:]
    drawn = st.one_of(*(
        operation.as_strategy(generation_mode=mode)
        for operation in operations for mode in GenerationMode
    ))
    familiar = st.builds(made_familiar, drawn, st.just(users), st.just(items), st.integers(0, 99))
    statuses: dict[int, int] = {}

    with requests.Session() as session:
        session.trust_env = False

        @settings(
            max_examples=REQUESTS, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck), phases=[Phase.generate],
        )
        @given(case=st.one_of(drawn, familiar))
        def ask(case: Any) -> None:
            response = case.call(base_url=fuzzed, session=session, timeout=TIMEOUT_S)
            statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
            case.validate_response(response, checks=CHECKS)

        ask()
    assert sum(statuses.values()) >= REQUESTS
    assert statuses[200] > REQUESTS / 10, statuses
    assert statuses[422] > REQUESTS / 10, statuses
    answer = service.client.post(f"{fuzzed}/v1/recommend", json={"history": [], "k": 3})
    assert len(answer.json()["items"]) == 3
