"""Seeded samples that any process draws alike: the smallest keys win.

A key is a digest of (seed, id), so a sample does not depend on the order or number of partitions,
and each partition need only offer its own smallest keys.
"""

import hashlib
import math
from collections.abc import Iterable

Offer = tuple[float, str, int]
"""Key (uniform ones are 64-bit integers), id, size in rows."""


def sample_key(seed: int, identity: str) -> int:
    """Return the draw of one id, uniform in 64 bits."""
    digest = hashlib.blake2b(f"{seed}:{identity}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def weighted_key(seed: int, identity: str, weight: float) -> float:
    """Return the draw of one id that comes first `weight` times as often as one of weight 1
    (Efraimidis and Spirakis, Information Processing Letters 97, 2006).
    """
    return -math.log((sample_key(seed, identity) + 1) / 2**64) / weight


def smallest(offers: Iterable[Offer], limit: int) -> list[Offer]:
    """Return the offers with the smallest keys, at most `limit` of them."""
    return sorted(offers)[:limit]


def reach_rows(offers: Iterable[Offer], rows: int) -> list[Offer]:
    """Return offers in key order until they reach `rows`: what a partition must offer."""
    taken: list[Offer] = []
    total = 0
    for offer in sorted(offers):
        if total >= rows:
            break
        taken.append(offer)
        total += offer[2]
    return taken


def within_rows(offers: Iterable[Offer], rows: int) -> list[Offer]:
    """Return offers in key order until the next would exceed `rows`; at least one."""
    taken = reach_rows(offers, rows)
    exceeds = sum(offer[2] for offer in taken) > rows
    return taken[:-1] if exceeds and len(taken) > 1 else taken
