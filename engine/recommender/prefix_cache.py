"""Prefixes that were read before: a user's next request costs only its candidates.

A prefix has the same keys and values where release, mix and tokens are the same. All three are the
key of an entry, so a change of release, an event more (other tokens, other gates) or another user
never finds a stale one. Entries that were not used for longest go first.
"""

from threading import Lock
from typing import NamedTuple

import numpy as np
from cachetools import LRUCache

from engine.models.attention import PrefixStates
from engine.types import FloatArray, IntArray

GATE_DIGITS = 4
"""Decimals of a gate's weight that tell mixes apart."""


class PrefixKey(NamedTuple):
    """What the states of a prefix depend on."""

    release_id: str
    gates: bytes
    """Mixing weights [G, N] of the prefix."""
    tokens: bytes

    @classmethod
    def of(cls, release_id: str, gates_PGN: FloatArray, prefix: IntArray) -> "PrefixKey":
        """Return the key of a prefix under the first row of some gates.

        Their last digits vary with the requests that the CRM scores in one batch: they are left
        out.
        """
        gates = np.round(gates_PGN[0], GATE_DIGITS) + 0.0           # no -0
        return cls(release_id, gates.tobytes(), prefix.astype(np.int64).tobytes())


class PrefixCache:
    """States of prefixes within a budget of bytes; may be shared by threads."""

    def __init__(self, max_bytes: int) -> None:
        self.hits = self.misses = 0
        self._states: LRUCache[PrefixKey, PrefixStates] = LRUCache(
            max_bytes, getsizeof=lambda states: states.num_bytes
        )
        self._lock = Lock()

    @property
    def num_bytes(self) -> int:
        """Return the memory in use."""
        return int(self._states.currsize)

    def __contains__(self, key: PrefixKey) -> bool:
        """Tell whether a prefix is kept; does not count as its use."""
        with self._lock:
            return key in self._states

    def get(self, key: PrefixKey) -> PrefixStates | None:
        """Return the states of a prefix, None if they are not there."""
        with self._lock:
            found = self._states.get(key)
            self.hits += found is not None
            self.misses += found is None
            return found

    def clear(self) -> None:
        """Forget all prefixes."""
        with self._lock:
            self._states.clear()

    def put(self, key: PrefixKey, states: PrefixStates) -> None:
        """Keep states; older ones make room. What is larger than the budget is not kept."""
        with self._lock:
            if states.num_bytes <= self._states.maxsize:
                self._states[key] = states
