"""Raw logs -> interactions, items, users and quarantine.

python jobs/import_data.py --config jobs/configs/ml-100k.yaml [--source FOLDER_OR_ZIP]
"""

import argparse
import sys
from collections.abc import Sequence

from engine.config import EngineConfig, load_config
from jobs.exit_code import exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Import the source of a config; return the exit code."""
    parser = argparse.ArgumentParser(description="Import raw logs into Parquet.")
    parser.add_argument("--config", required=True, help="YAML file of settings")
    parser.add_argument("--source", help="folder, .zip or file instead of source.path")
    options = parser.parse_args(arguments)
    overrides = {"source.path": options.source} if options.source else None
    return exit_code(lambda: run_import(load_config(options.config, overrides)))


def run_import(config: EngineConfig) -> None:
    """Import, then print what came of it."""
    from engine.stages.interactions import import_data  # --help needs no Ray
    from jobs.start import configure_logging, start_ray

    configure_logging()
    start_ray()
    artifact = import_data(config.run.root, config)
    facts = artifact.facts
    print(
        f"{facts['events']} events of {facts['active_users']} users on {facts['active_items']} "
        f"items ({facts['positives']} positives); {facts['items']} items, {facts['users']} profiles"
    )
    for table, reasons in facts["quarantined"].items():
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "none"
        print(f"quarantined {table}: {listed}")
    if deleted := facts.get("deleted_events", 0):
        print(f"left out: {deleted} events of deleted users")
    print(f"output: {artifact.uri}")


if __name__ == "__main__":
    sys.exit(main())
