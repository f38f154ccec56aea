"""Try out a release beside the live one: on a share of the users, or in the shadow.

python -m jobs.experiment start RELEASE_ID --share 0.1 [--shadow] --registry runs/releases
    [--address http://127.0.0.1:8265]
python -m jobs.experiment stop --registry runs/releases [--address http://127.0.0.1:8265]

The users of the share get their answers from this challenger; with --shadow they get the live
release's, and the challenger answers the same for the record alone. Both are compared, by the
events that followed, with `python -m jobs.evaluate --answers`. To start again with a larger share
keeps the users of the smaller one; a promotion of the challenger ends the experiment. Without
--address only the registry is written; replicas that start later read it.
"""

import argparse
import sys
import time
from collections.abc import Sequence

from engine.releases.experiment import Experiment
from jobs.exit_code import exit_code
from jobs.promote import Replica, add_options, open_registry, tell


def main(arguments: Sequence[str] | None = None) -> int:
    """Start or stop; return the exit code."""
    parser = argparse.ArgumentParser(description="Try out a release beside the live one.")
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("start", help="let a release answer a share of the users")
    starting.add_argument("release_id")
    starting.add_argument("--share", type=float, required=True, help="of users, up to 1")
    starting.add_argument(
        "--shadow", action="store_true", help="beside the live release, for the record alone"
    )
    add_options(starting)
    add_options(commands.add_parser("stop", help="leave all users to the live release"))
    options = parser.parse_args(arguments)
    return exit_code(start if options.command == "start" else stop, options)


def start(options: argparse.Namespace) -> None:
    """Try out a challenger and tell the running application."""
    experiment = Experiment(options.release_id, options.share, options.shadow, int(time.time()))
    live = open_registry(options).start_experiment(experiment)
    how = "answers in the shadow of" if options.shadow else "answers instead of"
    print(f"{options.release_id} {how} {live.release_id}: {options.share:.1%} of the users")
    if options.address:
        tell(options, options.release_id,
             lambda replica: _is_tried_out(replica, experiment), hint="start the experiment again")
        print("every replica follows")


def stop(options: argparse.Namespace) -> None:
    """End the experiment and tell the running application."""
    live = open_registry(options).stop_experiment()
    print(f"{live.release_id} answers all users")
    if options.address:
        tell(options, None, lambda replica: replica["experiment"] is None,
             hint="stop the experiment again")
        print("every replica follows")


def _is_tried_out(replica: Replica, experiment: Experiment) -> bool:
    return bool(replica["experiment"] == experiment.to_json())


if __name__ == "__main__":
    sys.exit(main())
