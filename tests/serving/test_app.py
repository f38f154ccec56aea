from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from engine.config import ServingConfig

CONFIGS = Path(__file__).resolve().parents[2] / "serve_configs"


def read(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text())
    return config


@pytest.mark.parametrize("name", ["local.yaml", "prod.yaml"])
def test_a_serve_config_is_valid_and_follows_one_registry(name: str) -> None:
    config = read(name)
    ServeDeploySchema.model_validate(config)
    [application] = config["applications"]
    assert application["import_path"] == "engine.serving.app:build_app"
    args = ServingConfig.model_validate(application["args"])
    deployments = {each["name"]: each for each in application["deployments"]}
    assert set(deployments) == {"Ingress", "Retriever", "Scorer"}
    assert deployments["Retriever"]["user_config"] == deployments["Scorer"]["user_config"]
    assert set(deployments["Scorer"]["user_config"]) == {"registry", "change"}
    assert deployments["Scorer"]["max_ongoing_requests"] >= 2 * args.max_batch_size


def test_the_local_application_leaves_most_of_two_cpus_free() -> None:
    deployments = read("local.yaml")["applications"][0]["deployments"]
    cpus = sum(
        each["num_replicas"] * each["ray_actor_options"]["num_cpus"] for each in deployments
    )
    assert cpus <= 1


def test_production_has_two_replicas_or_more_and_bounded_queues() -> None:
    for each in read("prod.yaml")["applications"][0]["deployments"]:
        assert each["autoscaling_config"]["min_replicas"] >= 2
        assert each["max_surge_percent"] == 100
        assert each["backpressure_config"]["status_code"] == 429
        assert each["max_queued_requests"] > 0


def test_a_wrong_argument_fails_by_name() -> None:
    with pytest.raises(ValidationError, match="max_batchsize"):
        ServingConfig.model_validate({"max_batchsize": 3})
