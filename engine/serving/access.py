"""Who may change things: keys from the environment of the service.

    LIFELORA_EVENTS_KEYS   may send events and list users
    LIFELORA_ADMIN_KEYS    may do that, delete users and change items and users

Several keys stand behind each other with commas, so that a new one works before the old one goes.
Without any, everybody may do everything, and the service starts only where nobody but this machine
can reach it.
"""

import ipaddress
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from engine.errors import ConfigError, ForbiddenError, UnknownKeyError

MIN_KEY_LENGTH = 16


class Right(StrEnum):
    """What a key is good for; the value names its environment variable."""

    EVENTS = "LIFELORA_EVENTS_KEYS"
    ADMIN = "LIFELORA_ADMIN_KEYS"


@dataclass(frozen=True, slots=True, repr=False)
class Access:
    """The keys of a service."""

    events: tuple[bytes, ...] = ()
    admin: tuple[bytes, ...] = ()

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> "Access":
        """Read the keys; raise ConfigError, without showing it, for one that is too short."""
        return cls(_keys(environment, Right.EVENTS), _keys(environment, Right.ADMIN))

    def check_listeners(self, hosts: Iterable[str]) -> None:
        """Raise ConfigError if there is no key and a host is more than this machine."""
        outside = sorted(host for host in hosts if not is_loopback(host))
        if outside and not (self.events or self.admin):
            raise ConfigError(
                f"the service listens on {outside} and has no keys; set {Right.EVENTS} and "
                f"{Right.ADMIN}, or listen on 127.0.0.1"
            )

    def require(self, right: Right, key: str | None) -> None:
        """Raise UnknownKeyError for no key or an unknown one, ForbiddenError for a lesser one.

        The time does not depend on how much of the key is right.
        """
        if not (self.events or self.admin):
            return
        given = (key or "").encode()
        is_admin, may_send = _is_among(given, self.admin), _is_among(given, self.events)
        if is_admin or (may_send and right is Right.EVENTS):
            return
        if may_send:
            raise ForbiddenError(f"this key is good for events alone; one of {right} is needed")
        raise UnknownKeyError(f"a key of {right} is needed: 'Authorization: Bearer KEY'")


def is_loopback(host: str) -> bool:
    """Tell whether a listener's address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _keys(environment: Mapping[str, str], right: Right) -> tuple[bytes, ...]:
    keys = [key.strip() for key in environment.get(right, "").split(",") if key.strip()]
    for place, key in enumerate(keys, start=1):
        if len(key) < MIN_KEY_LENGTH:
            raise ConfigError(
                f"{right}: key {place} has {len(key)} characters, at least {MIN_KEY_LENGTH} are "
                "needed"
            )
        if not key.isascii():
            raise ConfigError(f"{right}: key {place} has letters that no HTTP header carries")
    return tuple(key.encode() for key in keys)


def _is_among(given: bytes, keys: Sequence[bytes]) -> bool:
    return sum(secrets.compare_digest(given, key) for key in keys) > 0
