from hypothesis import given
from hypothesis import strategies as st

from engine.data.schema import part_name, partition_of


def test_partitions_are_the_same_in_every_process() -> None:
    assert [partition_of(user, 8) for user in ("1", "2", "user", "\xe9")] == [7, 5, 1, 6]


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 300))
def test_a_partition_is_one_of_those_there_are(user_id: str, partitions: int) -> None:
    assert 0 <= partition_of(user_id, partitions) < partitions


def test_parts_sort_by_number() -> None:
    assert part_name("histories", 12) == "histories/part-00012.parquet"
