import pyarrow as pa

from engine.data.profiles import Profiles
from engine.data.schema import users_schema
from engine.types import Profile


def test_a_user_has_the_fields_asked_for_and_a_stranger_has_none() -> None:
    rows = [{"user_id": "1", "gender": ["female"], "age": []}]
    table = pa.Table.from_pylist(rows, schema=users_schema(("gender", "age")))
    profiles = Profiles.from_table(table, ("gender",))
    assert len(profiles) == 1
    assert profiles.of("1") == Profile("1", {"gender": ("female",)})
    assert profiles.of("2") == Profile("2", {"gender": ()})


def test_the_profiles_of_some_users_are_those_of_all() -> None:
    rows = [{"user_id": str(number), "age": [str(number)]} for number in range(5)]
    table = pa.Table.from_pylist(rows, schema=users_schema(("age",)))
    every, some = (Profiles.from_table(table, ("age",), ids) for ids in (None, {"3", "1", "9"}))
    assert len(some) == 2
    assert [some.of(user) for user in ("1", "3")] == [every.of(user) for user in ("1", "3")]
    assert some.of("2") == Profile("2", {"age": ()})
