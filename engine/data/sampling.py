"""Seeded samples that any process draws alike: the smallest keys win.

A key is a digest of (seed, id), so a sample does not depend on the order or number of partitions,
and each partition need only offer its own smallest keys.
"""

import hashlib
from collections.abc import Iterable

Offer = tuple[int, str, int]
"""Key, id, size in rows."""


def sample_key(seed: int, identity: str) -> int:
    """Return the draw of one id, uniform in 64 bits."""
    digest = hashlib.blake2b(f"{seed}:{identity}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def smallest(offers: Iterable[Offer], limit: int) -> list[Offer]:
    """Return the offers with the smallest keys, at most `limit` of them."""
    return sorted(offers)[:limit]


def within_rows(offers: Iterable[Offer], rows: int) -> list[Offer]:
    """Return offers in key order while they fit into `rows` together; at least one.

    An offer that is too large for what is left is passed over.
    """
    taken: list[Offer] = []
    left = rows
    for offer in sorted(offers):
        if offer[2] <= left or not taken:
            taken.append(offer)
            left -= offer[2]
    return taken
