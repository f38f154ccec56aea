"""Growth of a CRM: rows by hand, a planted linear map, everything else bit for bit."""

import numpy as np
import pytest

from engine.data.catalogue import Catalogue
from engine.models.crm_examples import TrainingCounts
from engine.models.crm_growth import (
    MIN_EVENTS,
    code_origins,
    foretell,
    grow_field,
    grow_maps,
    grow_weights,
    row_origins,
)
from engine.models.crm_maps import CRMMaps
from engine.models.crm_vocabulary import FieldTable, FieldVocabulary
from engine.types import FloatArray

WIDTH, DIMS = 3, 2
CATALOGUE = Catalogue(
    ["", "i1", "i2", "new", "quiet"], ["", *"abcd"],
    {"genre": [(), ("Drama",), ("Crime",), ("Anime", "Drama"), ("Noir",)]},
)
PARENT = CRMMaps(
    ["ann", "bob", "zoe"], ["i1", "gone", "i2"],
    FieldTable([FieldVocabulary("job", values=("cook", "writer")),
                FieldVocabulary("age", edges=(20.0, 40.0))]),
    FieldTable([FieldVocabulary("genre", values=("Crime", "Drama"))]),
    np.array([[0, 0, 0], [9, 1, 9], [9, 2, 9], [9, 3, 9]], float),
)
COUNTS = TrainingCounts(
    np.array([[0, 0, 0], [10, 1, 20], [0, 0, 0], [4, 4, 8], [0, 0, 0]], float), ["abe", "ann"],
    {"job": {"cook": 1, "actor": 1}, "age": {str(age): 1 for age in range(15, 60)}}, ["zoe"],
)
"""Bob has left; zoe has no event that counts; item i2 none, either; "gone" is in no catalogue."""


def weights(maps: CRMMaps) -> dict[str, FloatArray]:
    rng = np.random.default_rng(3)
    sizes = {
        "user_ids": len(maps.user_ids) + 1, "item_ids": len(maps.item_ids) + 1,
        "user_codes": maps.user_fields.size, "item_codes": maps.item_fields.size, "levels": 11,
    }
    return {
        f"{name}.weight": rng.normal(size=(size, WIDTH)).astype(np.float32)
        for name, size in sizes.items()
    }


def test_what_is_new_stands_at_the_end_and_whoever_has_left_is_gone() -> None:
    maps = grow_maps(PARENT, COUNTS, CATALOGUE)
    assert maps.user_ids == ["ann", "zoe", "abe"]
    assert maps.item_ids == ["i1", "i2", "new"]
    assert maps.counts_K3.tolist() == [[0, 0, 0], [10, 1, 20], [0, 0, 0], [4, 4, 8]]
    job, age = maps.user_fields.fields
    assert job.values == ("cook", "writer", "actor")
    assert age == PARENT.user_fields.fields[1]
    assert maps.item_fields.fields[0].values == ("Crime", "Drama", "Anime")


def test_every_row_comes_from_where_its_id_or_value_was() -> None:
    maps = grow_maps(PARENT, COUNTS, CATALOGUE)
    assert row_origins(PARENT.user_ids, maps.user_ids).tolist() == [0, 1, 3, 0]
    assert row_origins(PARENT.item_ids, maps.item_ids).tolist() == [0, 1, 3, 0]
    # pad; job: unknown, cook, writer, actor; age: unknown and three buckets
    assert code_origins(PARENT.user_fields, maps.user_fields).tolist() == [
        0, 1, 2, 3, 1, 4, 5, 6, 7,
    ]
    assert code_origins(PARENT.item_fields, maps.item_fields).tolist() == [0, 1, 2, 3, 1]


def test_known_rows_and_all_other_weights_are_the_parents_bit_for_bit() -> None:
    maps, old = grow_maps(PARENT, COUNTS, CATALOGUE), weights(PARENT)
    grown = grow_weights(old, PARENT, maps, np.zeros((4, DIMS)))
    assert grown["user_ids.weight"].tolist() == old["user_ids.weight"][[0, 1, 3, 0]].tolist()
    assert grown["item_ids.weight"].tolist() == old["item_ids.weight"][[0, 1, 3, 0]].tolist()
    assert grown["user_codes.weight"].tolist() == (
        old["user_codes.weight"][[0, 1, 2, 3, 1, 4, 5, 6, 7]].tolist()
    )
    assert grown["levels.weight"].tolist() == old["levels.weight"].tolist()
    assert grown.keys() == old.keys()


def test_a_field_keeps_its_kind() -> None:
    ages = {str(age): 1 for age in range(100)}
    buckets = FieldVocabulary("age", edges=(20.0, 40.0))
    assert grow_field(buckets, ages) is buckets
    few = FieldVocabulary("age", values=("18", "30"))
    assert grow_field(few, ages).values[:2] == ("18", "30")
    assert grow_field(few, ages).size == 101
    assert grow_field(few, {"30": 4}) == few
    assert grow_field(FieldVocabulary("age"), ages).edges       # the parent knew no value


def planted(known: int, new: int, noise: float = 0.0) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return texts and rows of known items and texts of new ones, and the map between."""
    rng = np.random.default_rng(5)
    texts = rng.normal(size=(known + new, DIMS)).astype(np.float32)
    linear = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
    rows = texts @ linear + 7
    return texts, (rows + noise * rng.normal(size=rows.shape)).astype(np.float32), rows


def test_a_linear_map_from_text_to_rows_is_found_again() -> None:
    texts, rows, expected = planted(40, 10)
    found = foretell(texts[:40], rows[:40], texts[40:])
    np.testing.assert_allclose(found, expected[40:], rtol=1e-4)
    texts, rows, expected = planted(400, 10, noise=0.5)
    found = foretell(texts[:400], rows[:400], texts[400:])
    np.testing.assert_allclose(found, expected[400:], atol=0.3)


def test_texts_that_tell_nothing_give_the_mean_row() -> None:
    rng = np.random.default_rng(1)
    texts, rows = rng.normal(size=(300, DIMS)), rng.normal(size=(300, WIDTH))
    foretold = foretell(texts, rows, rng.normal(size=(5, DIMS)))
    assert np.abs(foretold - rows.mean(axis=0)).max() < 0.15
    same = foretell(np.ones((300, DIMS)), rows, np.ones((5, DIMS)))
    np.testing.assert_allclose(same, np.tile(rows.mean(axis=0), (5, 1)), atol=1e-9)


@pytest.mark.parametrize(("events", "is_foretold"), [(MIN_EVENTS, True), (MIN_EVENTS - 1, False)])
def test_new_items_start_from_their_text_if_enough_items_tell(
    events: int, is_foretold: bool
) -> None:
    texts, rows, expected = planted(30, 4)
    known, every = [f"i{n}" for n in range(30)], [f"i{n}" for n in range(34)]
    counts = np.full((31, 3), float(events))
    counts[0] = 0
    none = FieldTable([])
    parent = CRMMaps([], known, none, none, counts)
    maps = CRMMaps([], every, none, none, np.zeros((35, 3)))
    old = weights(parent)
    old["item_ids.weight"][1:] = rows[:30]
    texts_KT = np.concatenate([np.zeros((1, DIMS)), texts])
    grown = grow_weights(old, parent, maps, texts_KT)["item_ids.weight"]
    assert grown[:31].tolist() == old["item_ids.weight"].tolist()
    start = expected[30:] if is_foretold else np.tile(old["item_ids.weight"][0], (4, 1))
    np.testing.assert_allclose(grown[31:], start, rtol=1e-4)
