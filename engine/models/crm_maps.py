"""What training data taught the CRM beside its weights: ID maps, field codes, item statistics.

    tensors    item_ids.bytes, item_ids.offsets, statistics [K + 1, 3] (by row of the id embedding)
    JSON       fields of users and items, mean label and rating
    table      user ids in row order (row 0 is the unknown user, so the first id has row 1)

Items keep their ids here, not catalogue indices: a later catalogue may number them anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from engine.config import CRMConfig, SourceConfig
from engine.data.catalogue import Catalogue
from engine.errors import ArtifactError
from engine.models.crm_features import FeatureSpace, item_table
from engine.models.crm_statistics import ItemStatistics
from engine.models.crm_vocabulary import FieldTable
from engine.storage import Tensors
from engine.types import FloatArray, IntArray

USERS = pa.schema([("user_id", pa.string())])


@dataclass(frozen=True)
class CRMMaps:
    """ID maps and statistics, all from events before the cut."""

    user_ids: Sequence[str]
    item_ids: Sequence[str]
    """Items seen in training: the first has row 1."""
    user_fields: FieldTable
    item_fields: FieldTable
    counts_K3: FloatArray
    """Events, positives and sum of ratings by row; row 0 is zero."""

    def statistics(self, rows_I: IntArray, counts_K3: FloatArray | None = None) -> ItemStatistics:
        """Return the statistics by item index; `counts_K3` stands in for the whole counts."""
        whole = self.counts_K3 if counts_K3 is None else counts_K3
        means = ItemStatistics.of(whole)
        return ItemStatistics(whole[rows_I], means.mean_label, means.mean_rating)

    def rows_of(self, catalogue: Catalogue) -> IntArray:
        """Return the embedding row of each item index; 0 for one that training never saw."""
        rows = {item_id: row for row, item_id in enumerate(self.item_ids, start=1)}
        found = [rows.get(item_id, 0) for item_id in catalogue.item_ids[1:]]
        return np.array([0, *found], np.int32)

    def space(
        self, catalogue: Catalogue, vectors_IT: FloatArray, crm: CRMConfig, source: SourceConfig,
        counts_K3: FloatArray | None = None,
    ) -> FeatureSpace:
        """Return the feature space over a catalogue with text vectors by item index."""
        if len(vectors_IT) != len(catalogue):
            raise ArtifactError(
                f"{len(vectors_IT)} text vectors for a catalogue of {len(catalogue)} rows"
            )
        rows = self.rows_of(catalogue)
        statistics = self.statistics(rows, counts_K3)
        table = item_table(catalogue, vectors_IT, self.item_fields, statistics, rows)
        return FeatureSpace(crm, source, self.user_fields, table, statistics)

    def to_tensors(self) -> Tensors:
        """Return the arrays."""
        data, offsets = pack_texts(self.item_ids)
        return {
            "item_ids.bytes": data, "item_ids.offsets": offsets,
            "statistics": self.counts_K3.astype(np.float64),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the JSON part."""
        fields = {"user_fields": self.user_fields, "item_fields": self.item_fields}
        return {name: table.to_json() for name, table in fields.items()}

    def users_table(self) -> pa.Table:
        """Return the user ids in row order."""
        return pa.table({"user_id": pa.array(self.user_ids, pa.string())}, schema=USERS)

    @classmethod
    def read(cls, tensors: Tensors, values: Mapping[str, Any], users: pa.Table) -> "CRMMaps":
        """Read the three parts."""
        item_ids = unpack_texts(tensors["item_ids.bytes"], tensors["item_ids.offsets"])
        counts = tensors["statistics"]
        if len(counts) != len(item_ids) + 1:
            raise ArtifactError(f"{len(counts)} rows of statistics for {len(item_ids)} items")
        return cls(
            users["user_id"].to_pylist(), item_ids, FieldTable.from_json(values["user_fields"]),
            FieldTable.from_json(values["item_fields"]), counts,
        )


def pack_texts(texts: Sequence[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return texts as UTF-8 bytes and the borders between them."""
    encoded = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), offsets


def unpack_texts(data: npt.NDArray[Any], offsets: npt.NDArray[Any]) -> list[str]:
    """Return what `pack_texts` packed."""
    whole = data.tobytes()
    return [whole[start:end].decode() for start, end in pairwise(offsets.tolist())]
