from hypothesis import given
from hypothesis import strategies as st

from engine.data.sampling import reach_rows, sample_key, smallest, within_rows

OFFERS = st.lists(
    st.tuples(st.integers(0, 1000), st.text(max_size=3), st.integers(1, 50)), max_size=30,
    unique=True,
)


@given(offers=OFFERS, limit=st.integers(1, 10), cut=st.integers(0, 30))
def test_the_sample_is_the_same_however_offers_are_partitioned(
    offers: list[tuple[int, str, int]], limit: int, cut: int
) -> None:
    parts = smallest(offers[:cut], limit) + smallest(offers[cut:], limit)
    assert smallest(parts, limit) == smallest(offers, limit)


@given(offers=OFFERS, rows=st.integers(1, 100), cut=st.integers(0, 30))
def test_whole_users_stay_within_the_rows_however_they_are_partitioned(
    offers: list[tuple[int, str, int]], rows: int, cut: int
) -> None:
    taken = within_rows(offers, rows)
    assert bool(taken) == bool(offers)
    assert sum(offer[2] for offer in taken) <= rows or len(taken) == 1
    parts = reach_rows(offers[:cut], rows) + reach_rows(offers[cut:], rows)
    assert within_rows(parts, rows) == taken


def test_a_key_depends_on_seed_and_id_alone() -> None:
    assert sample_key(17, "u1") == sample_key(17, "u1")
    assert len({sample_key(17, "u1"), sample_key(18, "u1"), sample_key(17, "u2")}) == 3
    assert sample_key(1, "1:2") == sample_key(1, "1:2") < 2**64
