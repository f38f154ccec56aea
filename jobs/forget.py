"""Delete what no night needs any more, as each night does when it has ended.

python -m jobs.forget --config jobs/configs/ml-100k.yaml [--set night.keep_releases=3] [--dry-run]

Old releases go, and what stages have written to `run.root` and no kept release was made of; never
the live release, the one before it or a challenger. --dry-run only says what would go. Exit code 1
while a night runs.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.config import EngineConfig, load_config
from engine.errors import ConfigError, EngineError
from jobs.exit_code import exit_code
from jobs.train_reclora import read_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from engine.releases.registry import Registry
    from engine.stages.forgetting import Forgotten
    from engine.state.leases import Lease

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Delete; return the exit code."""
    parser = argparse.ArgumentParser(description="Delete what no night needs any more.")
    parser.add_argument("--config", required=True, help="YAML file of settings")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE",
        help="one setting by its dotted name, e.g. night.keep_releases=3 (repeatable)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    options = parser.parse_args(arguments)
    return exit_code(lambda: describe(
        run(load_config(options.config, read_settings(options.set)), dry_run=options.dry_run),
        dry_run=options.dry_run,
    ))


def run(config: EngineConfig, *, dry_run: bool = False) -> "Forgotten":
    """Delete, or say what would go. Raises NightRunningError while a night runs."""
    from engine.releases.registry import Registry  # --help needs none of these
    from engine.stages.forgetting import forget
    from engine.state.database import open_existing
    from engine.state.leases import leased
    from engine.state.nights import entries
    from jobs.nightly_update import LEASE, owner_name
    from jobs.start import configure_logging

    configure_logging()
    if config.run.state is None:
        raise ConfigError("run.state is null: what a night may delete is in its ledger")
    registry, database = Registry(config.run.registry), open_existing(config.run.state)
    keep = config.night.keep_releases
    try:
        if dry_run:
            return forget(config.run.root, registry, entries(database), keep, dry_run=True)
        with leased(database, LEASE, owner_name()):
            return forget(config.run.root, registry, entries(database), keep)
    finally:
        database.dispose()


def after_night(
    registry: "Registry", config: EngineConfig, database: "Engine", lease: "Lease"
) -> None:
    """Delete what the night that has just ended made superfluous; a failure is logged alone."""
    from engine.stages.forgetting import forget
    from engine.state.nights import entries

    try:
        lease.check()
        forgotten = forget(
            config.run.root, registry, entries(database), config.night.keep_releases
        )
    except (EngineError, OSError, ValueError) as error:
        log.error("not all was deleted that no night needs, the next one tries again: %s", error)
        return
    if forgotten.releases or forgotten.folders:
        log.info(
            "deleted %d releases and %d folders, %d bytes, that no night needs",
            len(forgotten.releases), len(forgotten.folders), forgotten.size_bytes,
        )


def describe(forgotten: "Forgotten", *, dry_run: bool) -> None:
    """Print what went, or would go."""
    for release in forgotten.releases:
        print(f"release {release.release_id}: {release.size_bytes:,} bytes")
    for folder in forgotten.folders:
        print(f"{folder.name}: {folder.size_bytes:,} bytes")
    verb = "would go" if dry_run else "are gone"
    print(
        f"{len(forgotten.releases)} releases and {len(forgotten.folders)} folders {verb}: "
        f"{forgotten.size_bytes:,} bytes"
    )


if __name__ == "__main__":
    sys.exit(main())
