"""Items by index: ids, titles and fields."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from engine.data.schema import items_schema
from engine.errors import ArtifactError, UnknownItemError

Values = tuple[str, ...]


@dataclass(frozen=True)
class Catalogue:
    """The items; position 0 of every list is the unknown item (empty texts)."""

    item_ids: list[str]
    titles: list[str]
    fields: dict[str, list[Values]]
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        index = {item_id: item for item, item_id in enumerate(self.item_ids) if item}
        object.__setattr__(self, "_index", index)

    def __len__(self) -> int:
        return len(self.item_ids)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._index

    def index_of(self, item_id: str) -> int:
        """Return an item's index; UnknownItemError names an id that is not there."""
        try:
            return self._index[item_id]
        except KeyError:
            raise UnknownItemError(
                f"item {item_id!r} is not in the catalogue of {len(self) - 1} items"
            ) from None

    def values_of(self, item: int) -> dict[str, Values]:
        """Return an item's fields."""
        return {name: column[item] for name, column in self.fields.items()}

    def take(self, items: Iterable[int]) -> "Catalogue":
        """Return a catalogue of the unknown item and these."""
        kept = [0, *items]
        return Catalogue(
            [self.item_ids[item] for item in kept], [self.titles[item] for item in kept],
            {name: [column[item] for item in kept] for name, column in self.fields.items()},
        )

    @classmethod
    def from_table(cls, table: pa.Table, fields: Sequence[str]) -> "Catalogue":
        """Read a table of `items_schema`; rows stand in index order from 1."""
        if table["item"].to_pylist() != list(range(1, table.num_rows + 1)):
            raise ArtifactError("column `item` of the catalogue is not 1, 2, 3, ...")
        values = {
            name: [(), *map(tuple, table[name].to_pylist())] for name in fields
        }
        return cls(
            ["", *table["item_id"].to_pylist()], ["", *table["title"].to_pylist()], values
        )

    def to_table(self) -> pa.Table:
        """Return the items without the unknown one, as a table of `items_schema`."""
        columns = {
            "item": range(1, len(self)), "item_id": self.item_ids[1:], "title": self.titles[1:],
            **{name: values[1:] for name, values in self.fields.items()},
        }
        return pa.table(columns, schema=items_schema(tuple(self.fields)))
