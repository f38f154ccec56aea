from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from engine.recommender.release import LoadedRelease
from engine.state.database import open_database
from tests.tiny_release import TinyWorld, tiny_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return tiny_world(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def release(world: TinyWorld) -> LoadedRelease:
    world.publish("r1")
    return world.load("r1")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(f"sqlite:///{tmp_path}/events.db")
    yield engine
    engine.dispose()


@pytest.fixture
def seeded(database: Engine, world: TinyWorld) -> Engine:
    """A database that holds the generated histories."""
    world.seed(database)
    return database
