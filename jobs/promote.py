"""Make a release live and wait until every replica answers from it.

python -m jobs.promote RELEASE_ID --registry runs/releases [--address http://127.0.0.1:8265]

Verifies the release, writes the registry's `live` file, then raises the counter `change` in the
`user_config` of the running application: replicas load the release and go on answering meanwhile.
Without --address only `live` is written; replicas that start later read it. The ledger of nights
tells of it, if there is one (--state). A relative registry starts from LIFELORA_HOME, if that is
set.
"""

import argparse
import http.client
import json
import logging
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.config import at_home
from engine.errors import ReleaseError, ReleaseNotFoundError
from engine.releases.registry import Registry
from engine.storage import absolute, is_remote
from jobs.exit_code import exit_code
from jobs.ledger import add_state_option, record

log = logging.getLogger(__name__)

POLL_S = 0.5
Replica = Mapping[str, Any]
"""What GET /v1/release says of one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Promote; return the exit code."""
    parser = argparse.ArgumentParser(description="Make a release live.")
    parser.add_argument("release_id")
    add_options(parser)
    add_state_option(parser)
    options = parser.parse_args(arguments)
    return exit_code(run, options, options.release_id)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what promote, rollback and experiment share."""
    parser.add_argument("--registry", default="runs/releases", help="folder or URI of the releases")
    add_service_options(parser)


def add_service_options(parser: argparse.ArgumentParser) -> None:
    """Add what tells the running application."""
    parser.add_argument("--address", help="URL of the Ray dashboard; none: only write `live`")
    parser.add_argument(
        "--endpoint", default="http://127.0.0.1:8000", help="URL of the application"
    )
    parser.add_argument("--timeout-s", type=float, default=600.0, help="longest wait for replicas")


def run(options: argparse.Namespace, release_id: str | None) -> None:
    """Promote a release, or roll back (None), and tell the running application."""
    from engine.state.nights import Entry, EntryKind  # --help needs no SQL

    registry = open_registry(options)
    before_id = live_id(registry)
    live = registry.rollback() if release_id is None else registry.promote(release_id)
    print(f"live: {live.release_id} (before it: {live.previous_id})")
    if before_id not in (None, live.release_id):
        kind = EntryKind.ROLLED_BACK if release_id is None else EntryKind.PROMOTED
        record(options.state, Entry(
            kind, before_id, live.release_id, reasons=("by hand",),
            detail={"registry": registry.root},
        ))
    if options.address:
        tell(options, live.release_id, hint=f"promote {live.release_id!r} again")
        print(f"every replica answers from {live.release_id}")


def live_id(registry: Registry) -> str | None:
    """Return the live release; None if there is none."""
    try:
        return registry.live().release_id
    except ReleaseNotFoundError:
        return None


def open_registry(options: argparse.Namespace) -> Registry:
    """Return the registry; raises ReleaseError where the application follows another one."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    folder = at_home(options.registry)
    if options.address:
        check_registry(read_details(options.address), folder)
    return Registry(folder)


def tell(
    options: argparse.Namespace, release_id: str | None,
    has_followed: Callable[[Replica], bool] | None = None, *, hint: str,
) -> None:
    """Have the running application read `live.json` again, and wait as `wait_for` does.

    `hint` says how to try again where the application does not take it.
    """
    try:
        change = bump_change(options.address)
    except ReleaseError as error:
        raise ReleaseError(
            f"{error}; the registry says so already: to tell the replicas, {hint}"
        ) from error
    wait_for(options.endpoint, release_id, change, options.timeout_s, has_followed)


def read_details(address: str) -> dict[str, Any]:
    """Return what Serve runs; raises ReleaseError where the dashboard does not answer."""
    try:
        details: dict[str, Any] = _client(address).get_serve_details()
    except (OSError, RuntimeError) as error:
        raise ReleaseError(f"no Ray dashboard answers at {address}: {error}") from error
    return details


def check_registry(details: Mapping[str, Any], registry: str) -> None:
    """Raise ReleaseError where no application follows a registry, or where all follow others.

    A relative path in an application starts where its Ray was started, so it can be any.
    """
    followed = {str(each["registry"]) for each in followers(running(details))}
    if not followed:
        raise ReleaseError("no application there follows a registry; run `serve deploy` first")
    if absolute(registry) not in {absolute(each) for each in followed} and all(
        is_remote(each) or Path(each).is_absolute() for each in followed
    ):
        raise ReleaseError(
            f"the application follows {sorted(followed)}, not {registry!r}; name it with --registry"
        )


def bump_change(address: str) -> int:
    """Raise the counter of every deployment that follows a registry; return the new value.

    Raises ReleaseError where the dashboard does not answer.
    """
    config, change = bumped(read_details(address))
    try:
        _client(address).deploy_applications(config)
    except (OSError, RuntimeError) as error:
        raise ReleaseError(f"{address} does not take the change: {error}") from error
    return change


def _client(address: str) -> Any:
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient  # --help needs no Ray

    return ServeSubmissionClient(address)


def running(details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the configs of the applications that were deployed by one and are not going."""
    return [
        application["deployed_app_config"]
        for application in details["applications"].values()
        if application["deployed_app_config"] and application["status"] != "DELETING"
    ]


def followers(applications: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the `user_config` of every deployment that follows a registry."""
    return [
        deployment["user_config"]
        for application in applications for deployment in application.get("deployments", [])
        if {"registry", "change"} <= (deployment.get("user_config") or {}).keys()
    ]


def bumped(details: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return the running applications' config with the next `change`, and that number.

    The number is one for all deployments: the largest there was, plus 1. It is 0 where no
    deployment has one.
    """
    applications = running(details)
    followed = followers(applications)
    change = 1 + max((int(user_config["change"]) for user_config in followed), default=-1)
    for user_config in followed:
        user_config["change"] = change
    config = {"applications": applications}
    for name in ("proxy_location", "http_options", "grpc_options"):
        if details.get(name):
            config[name] = details[name]
    return config, change


def wait_for(
    endpoint: str, release_id: str | None, change: int, timeout_s: float,
    has_followed: Callable[[Replica], bool] | None = None,
) -> None:
    """Wait until every replica has followed `change` and is as it shall be: by default, answers
    from the release.

    Raises ReleaseError with the reason if one refuses the release (None: whatever they refuse) or
    cannot read what is live, or at the end of the time.
    """
    has_followed = has_followed or (lambda replica: bool(replica["release_id"] == release_id))
    deadline = time.monotonic() + timeout_s
    while True:
        replicas = read_replicas(endpoint)
        followed = [each for each in replicas if each["change"] >= change]
        refused = {each["release_id"]: each["reason"]
                   for replica in followed for each in replica["refusals"]}
        if "" in refused:
            raise ReleaseError(f"a replica cannot read what is live: {refused['']}")
        if release_id in refused:
            raise ReleaseError(
                f"release {release_id!r} is refused by a replica: {refused[release_id]}"
            )
        if replicas and len(followed) == len(replicas) and all(map(has_followed, replicas)):
            return
        if time.monotonic() > deadline:
            raise ReleaseError(
                f"after {timeout_s:g} s {len(followed)} of {len(replicas)} replicas at "
                f"{endpoint} had followed; see GET /v1/release"
            )
        time.sleep(POLL_S)


def read_replicas(endpoint: str) -> list[Replica]:
    """Return what GET /v1/release says of each replica; none while it does not answer."""
    try:
        with urllib.request.urlopen(f"{endpoint.rstrip('/')}/v1/release", timeout=10) as answer:
            state = json.load(answer)
    except (OSError, http.client.HTTPException, ValueError) as error:
        log.info("waiting for %s: %s", endpoint, error)
        return []
    return [*state["retriever"], *state["scorer"]]


if __name__ == "__main__":
    sys.exit(main())
