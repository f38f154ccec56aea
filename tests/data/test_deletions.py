import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from engine.data.deletions import Deletions
from engine.data.histories import build_histories
from engine.data.schema import HISTORIES
from tests.night_world import Event, table_of

ITEMS = pa.array(["1", "2", "3"])
EVENTS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(ITEMS.to_pylist()), st.integers(0, 9)),
    unique=True, max_size=30,
)


@given(EVENTS, st.dictionaries(st.sampled_from("abcx"), st.integers(0, 9)))
def test_histories_are_cut_as_their_events_are(events: list[Event], times: dict[str, int]) -> None:
    deleted = Deletions.of(times)
    kept = [each for each in events if each[2] > times.get(each[0], -1)]
    assert deleted.later_events(table_of(events)) == table_of(kept)
    histories = deleted.later_histories(build_histories(table_of(events), ITEMS))
    assert histories.schema == HISTORIES
    assert histories == build_histories(table_of(kept), ITEMS)


def test_of_two_deletions_the_later_counts() -> None:
    merged = Deletions.of({"b": 5, "a": 9}).merged(Deletions.of({"a": 3, "c": 1, "b": 7}))
    assert merged.to_table().to_pylist() == [
        {"user_id": "a", "deleted_s": 9}, {"user_id": "b", "deleted_s": 7},
        {"user_id": "c", "deleted_s": 1},
    ]
    assert Deletions.from_table(merged.to_table()).settings() == merged.settings()
