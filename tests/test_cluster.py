"""The cluster files hold what Ray accepts, and what the engine needs from a cluster."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from engine.config import EngineConfig

REPO = Path(__file__).resolve().parents[1]
AWS = REPO / "cluster.yaml"
ONPREMISE = REPO / "docs" / "cluster-onpremise.yaml"
GUIDE = REPO / "docs" / "cluster.md"


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    return values


def _variables(config: dict[str, Any], role: str) -> dict[str, str]:
    """Return the variables that Ray's processes of a role get."""
    options = " ".join(config.get("docker", {}).get("run_options", []))
    text = f"{options} {' '.join(config[f'{role}_start_ray_commands'])}"
    return dict(re.findall(r"([A-Z][A-Z_]+)=([^\s;]+)", text))


@pytest.mark.parametrize("path", [AWS, ONPREMISE], ids=["aws", "onpremise"])
def test_ray_accepts_the_file(path: Path) -> None:
    prepared = prepare_config(_read(path))
    validate_config(prepared)
    for role in ("head", "worker"):
        commands = prepared[f"{role}_start_ray_commands"]
        assert commands == _read(path)[f"{role}_start_ray_commands"]      # ours, not Ray's defaults


@pytest.mark.parametrize("path", [AWS, ONPREMISE], ids=["aws", "onpremise"])
def test_ray_refuses_a_misspelt_key(path: Path) -> None:
    prepared = {**prepare_config(_read(path)), "head_start_commands": []}
    with pytest.raises(ValidationError, match="head_start_commands"):
        validate_config(prepared)


@pytest.mark.parametrize("path", [AWS, ONPREMISE], ids=["aws", "onpremise"])
@pytest.mark.parametrize("role", ["head", "worker"])
def test_every_node_asks_for_the_shared_token(path: Path, role: str) -> None:
    config = _read(path)
    assert _variables(config, role)["RAY_AUTH_MODE"] == "token"
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("path", [AWS, ONPREMISE], ids=["aws", "onpremise"])
def test_the_head_offers_no_cpus_and_a_private_dashboard(path: Path) -> None:
    start = " ".join(_read(path)["head_start_ray_commands"])
    assert "--num-cpus=0" in start
    assert "--dashboard-host=127.0.0.1" in start


def test_gpus_are_on_workers_that_can_grow() -> None:
    types = _read(AWS)["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert not types["head"]["node_config"]["InstanceType"].startswith(("g", "p"))
    assert types["gpu"]["node_config"]["InstanceType"].startswith("g")
    assert types["gpu"]["max_workers"] >= 2
    assert sum(kind.get("max_workers", 0) for kind in types.values()) <= _read(AWS)["max_workers"]


def test_own_machines_are_all_used() -> None:
    config = _read(ONPREMISE)
    workers = len(config["provider"]["worker_ips"])
    assert config["min_workers"] == config["max_workers"] == workers


def test_images_carry_the_version_of_the_package() -> None:
    version = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]
    config = _read(AWS)
    images = [
        config["docker"]["image"],
        config["available_node_types"]["gpu"]["docker"]["worker_image"],
    ]
    assert [image.rpartition(":")[2] for image in images] == [version, f"{version}-gpu"]
    assert f"lifelora:{version}" in (REPO / "Dockerfile").read_text()


def test_serving_finds_the_base_model_where_the_image_has_it() -> None:
    (application,) = _read(REPO / "serve_configs" / "prod.yaml")["applications"]
    cache = Path(application["args"]["model_cache"])
    assert f"jobs.fetch_inputs --cache {cache.parent}" in (REPO / "Dockerfile").read_text()
    assert cache.name == "models"


def test_the_guide_shows_a_config_that_the_engine_accepts() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    config = EngineConfig.model_validate(yaml.safe_load(block))
    assert config.run.root.startswith("s3://")
    assert config.crm.use_gpu
    assert config.adapters.use_gpu


def test_the_guide_names_files_that_are_there() -> None:
    path = r"(?:jobs|serve_configs|docs)/[\w/.-]+\.(?:py|yaml|md)"
    named = set(re.findall(path, GUIDE.read_text()))
    assert named
    for name in named - {"jobs/configs/cluster.yaml"}:      # the reader writes this one
        assert (REPO / name).is_file(), name
