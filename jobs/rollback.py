"""Make the release before the live one live again; a second rollback undoes the first.

python -m jobs.rollback --registry runs/releases [--address http://127.0.0.1:8265] [--state URL]

The next night goes on from that release, with all events since. The ledger of nights tells of it,
if there is one. A relative registry starts from LIFELORA_HOME, if that is set.
"""

import argparse
import sys
from collections.abc import Sequence

from jobs.exit_code import exit_code
from jobs.ledger import add_state_option
from jobs.promote import add_options, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Roll back; return the exit code."""
    parser = argparse.ArgumentParser(description="Make the previous release live again.")
    add_options(parser)
    add_state_option(parser)
    return exit_code(run, parser.parse_args(arguments), None)


if __name__ == "__main__":
    sys.exit(main())
