"""What the service has collected, events, items and profiles, as a source to train from.

python -m jobs.collect --serve-config serve_configs/local.yaml --out runs/collected [--release ID]

Database and registry are those of the Serve config; ratings, labels and fields are read as by its
live release, or another. Prints the settings of the next training. Relative paths start from
LIFELORA_HOME, if that is set.
"""

import argparse
import sys
from collections.abc import Sequence

import yaml

from engine.config import at_home
from jobs.exit_code import exit_code
from jobs.recommend import read_serve_config


def main(arguments: Sequence[str] | None = None) -> int:
    """Collect; return the exit code."""
    parser = argparse.ArgumentParser(description="Write what the service has collected.")
    parser.add_argument("--serve-config", default="serve_configs/local.yaml",
                        help="config of the Serve application that collected it")
    parser.add_argument("--out", default="runs/collected", help="folder or URI to fill")
    parser.add_argument("--release", help="release id; by default the live one")
    return exit_code(run, parser.parse_args(arguments))


def run(options: argparse.Namespace) -> None:
    """Write, then print what came of it and how to train from it."""
    serving, root = read_serve_config(options.serve_config)

    from sqlalchemy import make_url  # --help needs none of these

    from engine.releases.registry import Registry
    from engine.stages.collected import collect, source_of
    from jobs.start import configure_logging

    configure_logging()
    registry = Registry(root)
    release_id = registry.live().release_id if options.release is None else options.release
    artifact = collect(at_home(options.out), registry, release_id, serving.database_url)
    facts = artifact.facts
    print(f"{facts['events']} events, {facts['items']} items, {facts['users']} profiles")
    if untold := facts["items_without_text"]:
        print(f"{untold} items are known by their events alone, and called by their ids")
    if changed := facts["changed_ratings"]:
        print(f"{changed} ratings were changed to ones that have the label of their event")
    print(f"output: {artifact.uri}")
    source = source_of(registry.read_config(release_id).source, artifact.uri)
    print("settings of a training from it:")
    state = make_url(serving.database_url).set(password=None).render_as_string()
    values = {"run": {"state": state}, "source": source.settings()}
    print(yaml.safe_dump(values, sort_keys=False).rstrip())


if __name__ == "__main__":
    sys.exit(main())
