"""Make a release live and wait until every replica answers from it.

python -m jobs.promote RELEASE_ID --registry runs/releases [--address http://127.0.0.1:8265]

Verifies the release, writes the registry's `live` file, then raises the counter `change` in the
`user_config` of the running application: replicas load the release and go on answering meanwhile.
Without --address only `live` is written; replicas that start later read it.
"""

import argparse
import json
import logging
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from engine.errors import ReleaseError
from engine.releases.registry import Registry
from jobs.exit_code import exit_code

log = logging.getLogger(__name__)

POLL_S = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Promote; return the exit code."""
    parser = argparse.ArgumentParser(description="Make a release live.")
    parser.add_argument("release_id")
    add_options(parser)
    options = parser.parse_args(arguments)
    return exit_code(run, options, options.release_id)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what promote and rollback share."""
    parser.add_argument("--registry", default="runs/releases", help="folder or URI of the releases")
    parser.add_argument("--address", help="URL of the Ray dashboard; none: only write `live`")
    parser.add_argument(
        "--endpoint", default="http://127.0.0.1:8000", help="URL of the application"
    )
    parser.add_argument("--timeout-s", type=float, default=600.0, help="longest wait for replicas")


def run(options: argparse.Namespace, release_id: str | None) -> None:
    """Promote a release, or roll back (None), and tell the running application."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    registry = Registry(options.registry)
    live = registry.rollback() if release_id is None else registry.promote(release_id)
    print(f"live: {live.release_id} (before it: {live.previous_id})")
    if options.address:
        change = bump_change(options.address)
        wait_for(options.endpoint, live.release_id, change, options.timeout_s)
        print(f"every replica answers from {live.release_id}")


def bump_change(address: str) -> int:
    """Raise the counter of every deployment that follows a registry; return the new value.

    Raises ReleaseError if no application at this address follows one.
    """
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient  # --help needs no Ray

    client = ServeSubmissionClient(address)
    details = client.get_serve_details()
    config, change = bumped(details)
    if not change:
        raise ReleaseError(
            f"no application at {address} follows a registry; run `serve deploy` first"
        )
    client.deploy_applications(config)
    return change


def bumped(details: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return the running applications' config with the next `change`, and that number.

    The number is one for all deployments: the largest there was, plus 1. It is 0 where no
    deployment has one.
    """
    applications = [
        application["deployed_app_config"]
        for application in details["applications"].values()
        if application["deployed_app_config"] and application["status"] != "DELETING"
    ]
    followed = [
        deployment["user_config"]
        for application in applications for deployment in application.get("deployments", [])
        if {"registry", "change"} <= (deployment.get("user_config") or {}).keys()
    ]
    change = 1 + max((int(user_config["change"]) for user_config in followed), default=-1)
    for user_config in followed:
        user_config["change"] = change
    config = {"applications": applications}
    for name in ("proxy_location", "http_options", "grpc_options"):
        if details.get(name):
            config[name] = details[name]
    return config, change


def wait_for(endpoint: str, release_id: str, change: int, timeout_s: float) -> None:
    """Wait until every replica has followed `change` and holds the release.

    Raises ReleaseError with the reason if one refuses it, or at the end of the time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        replicas = read_replicas(endpoint)
        followed = [each for each in replicas if each["change"] >= change]
        refused = [each["refusal"]["reason"] for each in followed if each["refusal"]]
        if refused:
            raise ReleaseError(f"release {release_id!r} is refused by a replica: {refused[0]}")
        if replicas and all(
            each["change"] >= change and each["release_id"] == release_id for each in replicas
        ):
            return
        if time.monotonic() > deadline:
            raise ReleaseError(
                f"after {timeout_s:g} s {len(followed)} of {len(replicas)} replicas at "
                f"{endpoint} had followed; see GET /v1/release"
            )
        time.sleep(POLL_S)


def read_replicas(endpoint: str) -> list[dict[str, Any]]:
    """Return what GET /v1/release says of each replica; none while it does not answer."""
    try:
        with urllib.request.urlopen(f"{endpoint.rstrip('/')}/v1/release", timeout=10) as answer:
            state = json.load(answer)
    except (urllib.error.URLError, TimeoutError, ValueError) as error:
        log.info("waiting for %s: %s", endpoint, error)
        return []
    return [*state["retriever"], *state["scorer"]]


if __name__ == "__main__":
    sys.exit(main())
