import pickle

import pyarrow as pa
import pytest

from engine.data.catalogue import Catalogue
from engine.data.entities import items_without_file
from engine.data.schema import items_schema
from engine.errors import ArtifactError, UnknownItemError


@pytest.fixture
def catalogue() -> Catalogue:
    rows = [
        {"item": 1, "item_id": "a", "title": "A", "genres": ["Drama", "War"]},
        {"item": 2, "item_id": "b", "title": "B", "genres": []},
    ]
    return Catalogue.from_table(
        pa.Table.from_pylist(rows, schema=items_schema(("genres",))), ("genres",)
    )


def test_position_0_is_the_unknown_item(catalogue: Catalogue) -> None:
    assert len(catalogue) == 3
    assert catalogue.item_ids == ["", "a", "b"]
    assert catalogue.titles == ["", "A", "B"]
    assert catalogue.fields == {"genres": [(), ("Drama", "War"), ()]}


def test_an_id_gives_its_index_and_an_unknown_one_is_named(catalogue: Catalogue) -> None:
    assert catalogue.index_of("b") == 2
    assert "b" in catalogue
    assert "" not in catalogue
    for item_id in ("c", ""):
        with pytest.raises(UnknownItemError, match=f"'{item_id}' is not in the catalogue of 2"):
            catalogue.index_of(item_id)


def test_a_catalogue_survives_its_table_and_pickle(catalogue: Catalogue) -> None:
    assert Catalogue.from_table(catalogue.to_table(), ("genres",)) == catalogue
    assert pickle.loads(pickle.dumps(catalogue)).index_of("b") == 2


def test_a_table_out_of_order_is_refused() -> None:
    table = items_without_file({"a", "b"}, ()).sort_by([("item", "descending")])
    with pytest.raises(ArtifactError, match="not 1, 2, 3"):
        Catalogue.from_table(table, ())
