"""The best items of every user, or of a list of them, as Parquet: what the endpoint would answer.

python -m jobs.recommend --serve-config serve_configs/local.yaml --out runs/recommendations
    [--release ID] [--users FILE] [--k 10] [--include-seen] [--field genres=Comedy] [--actors 2]

Database, base model, ranking and registry are those of the Serve config, so the answers are the
endpoint's; relative paths start from LIFELORA_HOME, if that is set. FILE has one user id a line;
without it everybody with a stored event is answered.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from engine.config import ServingConfig, at_home, database_at_home
from engine.errors import ConfigError
from jobs.exit_code import exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Recommend; return the exit code."""
    parser = argparse.ArgumentParser(description="Recommend to all users, or to a list of them.")
    parser.add_argument("--serve-config", default="serve_configs/local.yaml",
                        help="config of the Serve application whose answers these are")
    parser.add_argument("--out", default="runs/recommendations", help="folder or URI to fill")
    parser.add_argument("--release", help="release id; by default the live one")
    parser.add_argument("--users", help="text file of user ids, one a line; by default everybody")
    parser.add_argument("--k", type=int, default=10, help="items for each user")
    parser.add_argument("--include-seen", action="store_true", help="items of the history, too")
    parser.add_argument("--field", action="append", default=[], metavar="NAME=VALUE",
                        help="only items with this value of an item field (repeatable)")
    parser.add_argument("--actors", type=int, default=1, help="processes that hold the release")
    options = parser.parse_args(arguments)
    return exit_code(run, options)


def run(options: argparse.Namespace) -> None:
    """Ask for every user, then print how they were answered and where it is."""
    serving, registry_root = read_serve_config(options.serve_config)
    fields = read_fields(options.field)
    users = None if options.users is None else read_users(options.users)

    from engine.recommender.candidates import Filters  # --help needs neither torch nor Ray
    from engine.releases.registry import Registry
    from engine.stages.recommendations import Ask, recommend
    from jobs.start import configure_logging, start_ray

    registry = Registry(registry_root)
    release_id = registry.live().release_id if options.release is None else options.release
    ask = Ask(
        registry.root, release_id, serving, options.k,
        Filters(exclude_seen=not options.include_seen, fields=fields), options.actors,
    )
    configure_logging()
    start_ray()
    artifact = recommend(at_home(options.out), ask, users)
    modes = ", ".join(f"{count} {mode}" for mode, count in artifact.facts["modes"].items())
    print(f"{artifact.facts['users']} users by release {ask.release_id}: {modes}")
    print(f"output: {artifact.path('recommendations')}")


def read_serve_config(path: str) -> tuple[ServingConfig, str]:
    """Return the arguments of the application and its registry; raises ConfigError."""
    if not Path(path).is_file():
        raise ConfigError(f"no Serve config at {path!r}")
    try:
        config = yaml.safe_load(Path(path).read_text())
        [application] = config["applications"]
        registries = {
            deployment["user_config"]["registry"] for deployment in application["deployments"]
            if "registry" in (deployment.get("user_config") or {})
        }
        [registry] = registries
        serving = ServingConfig.model_validate(application.get("args") or {})
    except (ValidationError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: expected one application whose deployments follow one registry"
        ) from error
    return with_paths_at_home(serving), at_home(str(registry))


def with_paths_at_home(serving: ServingConfig) -> ServingConfig:
    """Return the arguments with the relative paths of database and base model at home."""
    return serving.model_copy(update={
        "database_url": database_at_home(serving.database_url),
        "model_cache": at_home(serving.model_cache),
    })


def read_fields(pairs: Sequence[str]) -> dict[str, list[str]]:
    """Return the values wanted of each item field; raises ConfigError."""
    fields: dict[str, list[str]] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"--field {pair!r}: expected NAME=VALUE")
        fields.setdefault(name, []).append(value)
    return fields


def read_users(path: str) -> list[str]:
    """Return the ids of a file or URI without blanks around them, empty lines left out; raises
    ConfigError if it is not there or no UTF-8 text.
    """
    from engine import storage  # --help needs no pyarrow

    uri = at_home(path)
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"no file of user ids at {uri!r}: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{uri!r} is not UTF-8 text: {error}") from error
    return [user_id for line in text.split("\n") if (user_id := line.strip())]


if __name__ == "__main__":
    sys.exit(main())
