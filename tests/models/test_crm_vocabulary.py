"""Field values -> codes."""

import pickle

from engine.models.crm_vocabulary import BUCKETS, FieldTable, FieldVocabulary, fit_field


def table() -> FieldTable:
    return FieldTable([
        FieldVocabulary("gender", values=("F", "M")), FieldVocabulary("age", edges=(20.0, 30.0)),
    ])


def test_codes_are_laid_out_field_after_field() -> None:
    # 0 pads; gender: 1 unknown, 2 F, 3 M; age: 4 unknown, 5 below 20, 6 below 30, 7 above
    assert table().size == 8
    assert table().encode({"gender": ("M",), "age": ("20",)}) == [(3, 1.0), (6, 1.0)]
    assert table().encode({"gender": ("F",), "age": ("19.5",)}) == [(2, 1.0), (5, 1.0)]
    assert table().encode({"gender": ("F",), "age": ("99",)}) == [(2, 1.0), (7, 1.0)]


def test_what_training_never_saw_is_unknown() -> None:
    for values in ({"gender": ("X",), "age": ("old",)}, {"gender": (), "age": ("nan",)}, {}, None):
        assert table().encode(values) == [(1, 1.0), (4, 1.0)]


def test_several_values_share_a_weight_of_one() -> None:
    found = table().encode({"gender": ("F", "M", "X", "M"), "age": ()})
    assert found[:4] == [(2, 0.25), (3, 0.25), (1, 0.25), (3, 0.25)]


def test_rows_are_padded_with_code_and_weight_zero() -> None:
    codes, weights = table().encode_all([{"gender": ("F", "M")}, None])
    assert codes.tolist() == [[2, 3, 4], [1, 4, 0]]
    assert weights.tolist() == [[0.5, 0.5, 1.0], [1.0, 1.0, 0.0]]


def test_a_field_of_many_numbers_becomes_buckets_of_about_equal_size() -> None:
    field = fit_field("age", {str(age): 1 for age in range(100)})
    assert field.values == ()
    assert len(field.edges) == BUCKETS - 1
    sizes = [0] * field.size
    for age in range(100):
        sizes[field.bucket(str(age))] += 1
    assert sizes[0] == 0
    assert all(8 <= size <= 12 for size in sizes[1:])


def test_a_field_with_few_numbers_or_with_words_stays_a_category() -> None:
    assert fit_field("rank", {"1": 5, "2": 5}).values == ("1", "2")
    many = {f"word {n}": 1 for n in range(50)}
    assert fit_field("job", many).values == tuple(sorted(many))
    assert fit_field("empty", {}).size == 1


def test_codes_survive_json_and_pickle() -> None:
    values = {"gender": ("M",), "age": ("25",)}
    expected = table().encode(values)
    assert FieldTable.from_json(table().to_json()).encode(values) == expected
    assert pickle.loads(pickle.dumps(table())).encode(values) == expected
