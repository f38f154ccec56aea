"""One whole run on a tiny model, shared by the tests of the jobs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.config import load_config
from jobs import train_reclora
from tests.generated import write_online_retail
from tests.jobs.nights import World, first_world
from tests.tiny_llama import tiny_base

REPO = Path(__file__).resolve().parents[2]


def write_config(folder: Path, values: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def tiny_settings(folder: Path, base: dict[str, Any]) -> dict[str, Any]:
    """Return settings of a run that takes seconds."""
    return {
        "run": {"root": str(folder / "run"), "registry": str(folder / "releases")},
        "histories": {"num_partitions": 3},
        "item_text": {"dims": 8},
        "base_model": base,
        "crm": {
            "embedding_dim": 8, "state_dim": 12, "hidden_dims": [16, 10], "max_behaviors": 6,
            "max_history": 40, "max_recent": 10, "batch_size": 48, "lanes": 3, "epochs": 1,
            "threads_per_worker": 1,
        },
        "bank": {"num_adapters": 3, "rank": 2, "gate_hidden": 8},
        "adapters": {"max_slates": 12, "batch_slates": 4, "threads_per_worker": 1},
        "evaluation": {"validation_rows": 60, "test_rows": 60, "bootstrap_draws": 100},
    }


@pytest.fixture(scope="session")
def first(ray_local: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Return a first release and the days after it."""
    folder = tmp_path_factory.mktemp("nights")
    return first_world(folder, tiny_settings(folder, tiny_base(folder / "base").settings()))


@pytest.fixture(scope="session")
def one_night(first: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Return the world after its first night."""
    world = first.copy(tmp_path_factory.mktemp("one-night") / "world")
    world.night(1)
    return world


@pytest.fixture
def known_night(first: World, one_night: World, tmp_path: Path) -> World:
    """Return the world before its first night, which finds all that its stages will write."""
    return first.copy(tmp_path / "known", outputs_of=one_night)


@pytest.fixture
def world(first: World, tmp_path: Path) -> World:
    """Return the world before its first night."""
    return first.copy(tmp_path / "world")


@pytest.fixture(scope="session")
def tiny_run(ray_local: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return (config, outcome) of a run on generated purchases: implicit feedback, no item field.

    Ratings are run in tests/serving/test_end_to_end.py.
    """
    folder = tmp_path_factory.mktemp("tiny")
    source = write_online_retail(folder / "data")
    values = tiny_settings(folder, tiny_base(folder / "base").settings())
    template = yaml.safe_load((REPO / "jobs/configs/online-retail.yaml").read_text())
    values |= {name: template[name] for name in ("source", "slates", "prompt")}
    values["source"]["path"] = source
    config = load_config(str(write_config(folder, values)))
    return config, train_reclora.run(config)
