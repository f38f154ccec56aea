"""A change of the live release by hand -> a line in the ledger of nights."""

import argparse
import logging
from typing import TYPE_CHECKING

from engine.config import database_at_home, default_state
from engine.errors import EngineError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from engine.state.nights import Entry

log = logging.getLogger(__name__)


def add_state_option(parser: argparse.ArgumentParser) -> None:
    """Add the database of the ledger."""
    parser.add_argument(
        "--state", metavar="URL",
        help="database of the nights' ledger, which then tells of this, too, as `run.state`; by "
        "default the service's, if nights on it made one of these releases",
    )


def record(state: str | None, entry: "Entry") -> None:
    """Append to the ledger; where that is not possible, only say so: `live.json` counts.

    state: URL of the database; None: the default one, if its ledger knows one of the releases.
    """
    from sqlalchemy.exc import SQLAlchemyError  # --help needs none of these

    from engine.state.database import database_exists, open_existing
    from engine.state.nights import append

    logging.getLogger("alembic").setLevel(logging.WARNING)
    url = default_state() if state is None else database_at_home(state)
    try:
        if state is None and not database_exists(url):
            log.info("no ledger of nights tells of this: there is no database %s", url)
            return
        database = open_existing(url)
        try:
            if state is None and not _knows(database, entry):
                log.info("no ledger of nights tells of this: that of %s knows neither", url)
                return
            append(database, entry)
        finally:
            database.dispose()
    except (EngineError, SQLAlchemyError, OSError) as error:
        log.warning("the ledger of nights does not tell of this: %s", error)


def _knows(database: "Engine", entry: "Entry") -> bool:
    """Tell whether a night named one of the releases."""
    from engine.state.nights import entries

    named = {each for line in entries(database) for each in (line.parent_id, line.release_id)}
    return entry.parent_id in named or entry.release_id in named
