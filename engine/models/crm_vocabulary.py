"""Fields of users and items -> codes of an embedding table; learned from training rows only.

Code 0 pads. Each field has a code for "unknown", then its values, or the buckets of a number.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.types import FloatArray, IntArray

MIN_NUMBERS = 20
"""A field with more distinct values than this, all numbers, becomes buckets."""
BUCKETS = 10
MAX_VALUES = 8
"""Values read of one field of one user or item."""


@dataclass(frozen=True, slots=True)
class FieldVocabulary:
    """Codes of one field, from 0 (unknown); either `values` or `edges` is empty."""

    name: str
    values: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """Return the number of codes."""
        return 1 + (len(self.edges) + 1 if self.edges else len(self.values))

    def encoder(self) -> Mapping[str, int]:
        """Return the code of each category."""
        return {value: code for code, value in enumerate(self.values, start=1)}

    def bucket(self, value: str) -> int:
        """Return the code of a number; unknown if it is none."""
        number = _number(value)
        if number is None:
            return 0
        return 1 + int(np.searchsorted(np.array(self.edges), number, side="right"))


def fit_field(name: str, counts: Mapping[str, int]) -> FieldVocabulary:
    """Return the codes of a field from the counts of its values in training."""
    numbers = {value: _number(value) for value in counts}
    if len(counts) > MIN_NUMBERS and all(number is not None for number in numbers.values()):
        pairs = sorted((number, counts[value]) for value, number in numbers.items()
                       if number is not None)
        return FieldVocabulary(name, edges=_quantiles(pairs))
    return FieldVocabulary(name, values=tuple(sorted(counts)))


def _quantiles(pairs: Sequence[tuple[float, int]]) -> tuple[float, ...]:
    """Return the borders of buckets that hold about equally many rows."""
    numbers = np.array([number for number, _ in pairs])
    shares = np.cumsum([count for _, count in pairs]) / sum(count for _, count in pairs)
    places = np.searchsorted(shares, np.arange(1, BUCKETS) / BUCKETS)
    return tuple(np.unique(numbers[places]).tolist())


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


class FieldTable:
    """Several fields that share one embedding table."""

    def __init__(self, fields: Sequence[FieldVocabulary]) -> None:
        self.fields = tuple(fields)
        sizes = [field.size for field in fields]
        self._offsets = [1 + sum(sizes[:place]) for place in range(len(fields))]
        self._encoders = [field.encoder() for field in fields]
        self.size = 1 + sum(sizes)
        """Rows of the embedding table."""

    def encode(self, values: Mapping[str, Sequence[str]] | None) -> list[tuple[int, float]]:
        """Return codes and weights: the values of a field share a weight of 1."""
        return [
            (offset + code, 1.0 / len(codes))
            for field, offset, encoder in zip(
                self.fields, self._offsets, self._encoders, strict=True
            )
            for codes in [self._codes(field, encoder, (values or {}).get(field.name, ()))]
            for code in codes
        ]

    @staticmethod
    def _codes(
        field: FieldVocabulary, encoder: Mapping[str, int], values: Sequence[str]
    ) -> list[int]:
        if field.edges:
            return [field.bucket(value) for value in values[:MAX_VALUES]] or [0]
        return [encoder.get(value, 0) for value in values[:MAX_VALUES]] or [0]

    def encode_all(
        self, rows: Sequence[Mapping[str, Sequence[str]] | None]
    ) -> tuple[IntArray, FloatArray]:
        """Return padded codes [B, K] and weights [B, K]; K is at least 1."""
        encoded = [self.encode(row) for row in rows]
        width = max([1, *map(len, encoded)])
        codes = np.zeros((len(rows), width), np.int32)
        weights = np.zeros((len(rows), width), np.float32)
        for place, pairs in enumerate(encoded):
            for slot, (code, weight) in enumerate(pairs):
                codes[place, slot], weights[place, slot] = code, weight
        return codes, weights

    def to_json(self) -> list[dict[str, Any]]:
        """Return JSON values."""
        return [
            {"name": field.name, "values": list(field.values), "edges": list(field.edges)}
            for field in self.fields
        ]

    @classmethod
    def from_json(cls, values: Sequence[Mapping[str, Any]]) -> "FieldTable":
        """Read what `to_json` returned."""
        return cls([
            FieldVocabulary(entry["name"], tuple(entry["values"]), tuple(entry["edges"]))
            for entry in values
        ])
