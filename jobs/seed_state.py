"""Fill the serving database with a run's histories; safe to repeat.

python -m jobs.seed_state --config jobs/configs/ml-100k.yaml [--database sqlite:///state/lifelora.db]
python -m jobs.seed_state --histories runs/demo/histories-0123456789ab --database URL

Relative paths start from LIFELORA_HOME, if that is set.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

import pyarrow as pa

from engine import storage
from engine.artifacts import open_artifact
from engine.config import ServingConfig, at_home, database_at_home, load_config
from engine.data.layers import read_histories
from engine.data.schema import histories_of
from engine.errors import ArtifactError
from engine.releases.registry import Registry
from engine.state.database import open_database
from engine.state.histories import PastEvent, seed
from jobs.exit_code import exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Seed; return the exit code."""
    parser = argparse.ArgumentParser(description="Fill the serving database with histories.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", help="YAML file of the run whose live release is served")
    source.add_argument("--histories", help="folder or URI of a histories artifact")
    parser.add_argument("--database", default=ServingConfig().database_url, help="SQLAlchemy URL")
    options = parser.parse_args(arguments)
    return exit_code(run, options)


def run(options: argparse.Namespace) -> None:
    """Seed the database and say what it holds."""
    histories = at_home(options.histories) if options.histories else histories_of_live(
        options.config
    )
    events = seed_histories(histories, database_at_home(options.database))
    print(f"{events} events of {histories} are in the database")


def histories_of_live(config_file: str) -> str:
    """Return the histories that the live release of a configuration was made from."""
    config = load_config(config_file)
    registry = Registry(config.run.registry)
    release_id = registry.live().release_id
    key = registry.read_manifest(release_id).facts.inputs.get("histories")
    uri = storage.join(storage.absolute(config.run.root), f"histories-{key}")
    if key is None or not storage.exists(storage.join(uri, "manifest.json")):
        raise ArtifactError(
            f"release {release_id!r} was made from histories {key!r}, which are not in {uri}; "
            "name them with --histories"
        )
    return uri


def seed_histories(histories: str, database_url: str) -> int:
    """Store all histories of an artifact, one partition at a time; return the events read."""
    artifact = open_artifact(histories, "histories")
    item_ids = read_item_ids(artifact.path("items.parquet"))
    engine = open_database(database_url)
    try:
        return sum(
            seed(engine, past_events(read_histories(artifact.uri, partition), item_ids))
            for partition in range(len(artifact.files("histories/")))
        )
    finally:
        engine.dispose()


def read_item_ids(uri: str) -> list[str]:
    """Return item ids by index; index 0 is the unknown item."""
    return ["", *storage.read_table(uri, ["item_id"])["item_id"].to_pylist()]


def past_events(
    histories: pa.Table, item_ids: list[str]
) -> Iterator[tuple[str, list[PastEvent]]]:
    """Yield each user's events of one partition."""
    for user_id, history in histories_of(histories).items():
        yield user_id, [
            PastEvent(item_ids[item], time_s, rating, label)
            for item, time_s, rating, label in zip(
                history.items.tolist(), history.timestamps_s.tolist(), history.ratings.tolist(),
                history.labels.tolist(), strict=True,
            )
        ]


if __name__ == "__main__":
    sys.exit(main())
