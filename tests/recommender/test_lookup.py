from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import Engine

from engine.config import RankingConfig, RetrievalConfig
from engine.errors import RequestError, UnknownItemError, UnknownUserError
from engine.recommender.candidates import Filters
from engine.recommender.histories import GuestItem, guest_history, stored_history
from engine.recommender.lookup import Query, find, read_user, user_events
from engine.recommender.release import LoadedRelease
from engine.retrieval.cells import CellIndex
from engine.retrieval.index import build_index
from engine.state.deletions import delete_user
from engine.state.events import Event, append
from engine.state.histories import PastEvent
from engine.state.profiles import put_profiles
from engine.types import AnswerMode, Profile
from tests.tiny_release import TinyWorld

RANKING = RankingConfig(max_candidates=25, llm_candidates=5, shown_history=3)


def test_a_profile_that_was_sent_stands_in_for_the_release_s(
    world: TinyWorld, release: LoadedRelease, seeded: Engine
) -> None:
    user_id = sorted(world.histories)[0]
    put_profiles(seeded, {user_id: {"age": ("81",)}, "new": {"gender": ("F",)}, "none": {}})
    known = read_user(release, seeded, user_id)
    assert known == Profile(user_id, {"gender": (), "age": ("81",), "occupation": ()})
    new = find(release, seeded, Query(k=4, user_id="new"), RANKING)
    assert new.task is not None         # no popular items: something is known
    assert new.task.profile.fields == {"gender": ("F",), "age": (), "occupation": ()}
    assert user_events(release, seeded, "new", 5) == []
    with pytest.raises(UnknownUserError):
        user_events(release, seeded, "none", 5)
    delete_user(seeded, user_id)
    assert read_user(release, seeded, user_id) == Profile()
    put_profiles(seeded, {user_id: {"age": ("18",)}})
    assert read_user(release, seeded, user_id).user_id == ""    # who came back is a stranger
    assert (read_user(release, seeded, user_id).fields or {})["age"] == ("18",)


def test_a_stored_history_equals_the_one_that_was_trained_on(
    world: TinyWorld, release: LoadedRelease, seeded: Engine
) -> None:
    for user_id, history in world.histories.items():
        found = find(release, seeded, Query(k=5, user_id=user_id), RANKING)
        assert found.task is not None
        for name in ("items", "ratings", "labels", "timestamps_s"):
            np.testing.assert_array_equal(getattr(found.task.history, name), getattr(history, name))
        assert found.history_length == len(history)
        assert [event.timestamp_s for event in found.newest] == (
            history.timestamps_s[-3:][::-1].tolist()
        )


def test_only_the_newest_events_are_read(
    world: TinyWorld, release: LoadedRelease, seeded: Engine
) -> None:
    user_id = sorted(world.histories)[0]
    found = find(
        release, seeded, Query(k=5, user_id=user_id), RANKING.model_copy(update={"max_history": 4})
    )
    assert found.task is not None
    assert found.task.history.items.tolist() == world.histories[user_id].items[-4:].tolist()


def test_seen_items_are_left_out_however_old_they_are(
    world: TinyWorld, release: LoadedRelease, seeded: Engine
) -> None:
    user_id = max(world.histories, key=lambda user: len(world.histories[user]))
    seen = set(world.histories[user_id].items.tolist())
    short = RANKING.model_copy(update={"max_history": 4, "max_candidates": 40})
    assert len(seen) > 4
    for exclude_seen in (True, False):
        query = Query(k=5, user_id=user_id, filters=Filters(exclude_seen=exclude_seen))
        found = find(release, seeded, query, short)
        assert found.task is not None
        assert found.history_length == 4
        expected = set(range(1, 41)) - (seen if exclude_seen else set())
        assert set(found.task.candidates.tolist()) == expected
        items = [GuestItem(release.catalogue.item_ids[item]) for item in seen]
        guest = find(release, seeded, replace(query, user_id=None, guest=items), short)
        assert guest.task is not None
        assert set(guest.task.candidates.tolist()) == expected


def test_an_approximate_search_of_all_cells_finds_what_an_exact_one_does(
    world: TinyWorld, release: LoadedRelease, seeded: Engine
) -> None:
    settings = RetrievalConfig(exact_items=39, probes=6)        # of 40 items; of 6 cells
    large = replace(release, item_index=build_index(release.item_index.vectors_ID, settings))
    assert isinstance(large.item_index, CellIndex)
    filters = Filters(exclude_seen=True, fields={"genres": ["Drama", "Comedy"]})
    lengths = set()
    for user_id in world.histories:
        for query in (Query(k=5, user_id=user_id), Query(k=5, user_id=user_id, filters=filters)):
            approximate = find(large, seeded, query, RANKING).task
            exact = find(release, seeded, query, RANKING).task
            assert approximate is not None
            assert exact is not None
            assert approximate.candidates.tolist() == exact.candidates.tolist()
            lengths.add(len(exact.candidates))
    assert max(lengths) == 25 > min(lengths)


def test_candidates_are_found_or_named(
    world: TinyWorld, release: LoadedRelease, seeded: Engine
) -> None:
    user_id = sorted(world.histories)[0]
    found = find(release, seeded, Query(k=5, user_id=user_id), RANKING)
    assert found.task is not None
    assert len(found.task.candidates) == 25
    assert found.task.llm_candidates == 5
    named = find(release, seeded, Query(k=5, user_id=user_id, item_ids=["9", "4"]), RANKING)
    assert named.task is not None
    assert [release.catalogue.item_ids[item] for item in named.task.candidates] == ["9", "4"]
    whole = Query(k=5, user_id=user_id, item_ids=["9", "4", "8", "1", "2", "3"],
                  is_scored_whole=True)
    scored = find(release, seeded, whole, RANKING)
    assert scored.task is not None
    assert scored.task.llm_candidates == 6


def test_nobody_and_an_empty_guest_get_popular_items(
    release: LoadedRelease, database: Engine
) -> None:
    for query in (Query(k=4, user_id="nobody"), Query(k=4, guest=[])):
        found = find(release, database, query, RANKING)
        assert found.ranking is not None
        assert found.ranking.mode is AnswerMode.POPULAR
        assert [release.catalogue.index_of(item.item_id) for item in found.ranking.items] == (
            release.popularity.top[:4].tolist()
        )
        filtered = find(
            release, database, replace(query, filters=Filters(fields={"genres": ["Horror"]})),
            RANKING,
        )
        assert filtered.ranking is not None
        for item in filtered.ranking.items:
            index = release.catalogue.index_of(item.item_id)
            assert "Horror" in release.catalogue.fields["genres"][index]


def test_a_user_with_a_profile_but_no_events_is_personalised(
    world: TinyWorld, release: LoadedRelease, database: Engine
) -> None:
    found = find(release, database, Query(k=4, user_id=sorted(world.histories)[0]), RANKING)
    assert found.task is not None
    assert found.history_length == 0


def test_of_a_deleted_user_the_release_uses_nothing_until_there_are_new_events(
    world: TinyWorld, release: LoadedRelease, seeded: Engine
) -> None:
    user_id = sorted(world.histories)[0]
    query = Query(k=4, user_id=user_id)
    deleted_s = delete_user(seeded, user_id).deleted_s
    found = find(release, seeded, query, RANKING)
    assert found.ranking is not None
    assert found.ranking.mode is AnswerMode.POPULAR
    with pytest.raises(UnknownUserError, match=repr(user_id)):
        user_events(release, seeded, user_id, 5)
    append(seeded, [Event("new", user_id, "4", deleted_s + 1, 5.0, 1)])
    task = find(release, seeded, query, RANKING).task
    assert task is not None
    assert (task.profile, len(task.history)) == (Profile(), 1)
    assert len(user_events(release, seeded, user_id, 5)) == 1


def test_a_deleted_user_without_profile_is_a_guest_to_the_models(
    release: LoadedRelease, database: Engine
) -> None:
    """The CRM may have an embedding of the id."""
    event = Event("e1", "zoe", "4", 10, 5.0, 1)
    append(database, [event])
    task = find(release, database, Query(k=4, user_id="zoe"), RANKING).task
    assert task is not None
    assert task.profile.user_id == "zoe"
    deleted_s = delete_user(database, "zoe").deleted_s
    append(database, [replace(event, timestamp_s=deleted_s + 1)])
    task = find(release, database, Query(k=4, user_id="zoe"), RANKING).task
    assert task is not None
    assert (task.profile, len(task.history)) == (Profile(), 1)


def test_events_of_items_that_the_release_lacks_are_left_out(release: LoadedRelease) -> None:
    history = stored_history(release, [
        PastEvent("1", 5, 4.0, 1), PastEvent("gone", 6, 4.0, 1), PastEvent("2", 7, None, 0),
    ])
    assert [release.catalogue.item_ids[item] for item in history.items] == ["1", "2"]
    assert history.ratings.tolist() == [4.0, 1.0]
    assert history.timestamps_s.tolist() == [5, 7]


def test_items_that_the_release_lacks_take_no_place_of_those_it_has(
    release: LoadedRelease, database: Engine
) -> None:
    append(database, [
        Event("1", "zoe", "4", 10, 5.0, 1),
        *(Event(f"n{time_s}", "zoe", "new", time_s, 5.0, 1) for time_s in range(20, 29)),
        Event("n", "yan", "new", 20, 5.0, 1),
    ])
    assert [event.item_id for event in user_events(release, database, "zoe", 1)] == ["4"]
    short = RANKING.model_copy(update={"max_history": 2})
    assert find(release, database, Query(k=4, user_id="zoe"), short).history_length == 1
    assert user_events(release, database, "yan", 5) == []      # known, though not by this release


def test_a_guest_history_keeps_its_order(release: LoadedRelease) -> None:
    history = guest_history(release, [
        GuestItem("3", 5.0), GuestItem("1"), GuestItem("2", 2.0),
    ])
    assert [release.catalogue.item_ids[item] for item in history.items] == ["3", "1", "2"]
    assert history.ratings.tolist() == [5.0, 4.0, 2.0]
    assert history.labels.tolist() == [1, 1, 0]
    assert (np.diff(history.timestamps_s) > 0).all()


def test_a_guest_may_say_a_label_instead_of_a_rating(release: LoadedRelease) -> None:
    history = guest_history(release, [
        GuestItem("3", label=0), GuestItem("1", label=1), GuestItem("2", 5.0, label=0),
    ])
    assert history.labels.tolist() == [0, 1, 0]
    assert history.ratings.tolist() == [1.0, 4.0, 5.0]


def test_a_guest_history_names_what_is_wrong(release: LoadedRelease) -> None:
    with pytest.raises(UnknownItemError, match="'x'"):
        guest_history(release, [GuestItem("1"), GuestItem("x")])
    with pytest.raises(RequestError, match=r"^history\.1\.rating: 9 "):
        guest_history(release, [GuestItem("1"), GuestItem("2", 9.0)])


def test_the_events_of_a_user_come_newest_first(release: LoadedRelease, database: Engine) -> None:
    append(database, [
        Event("1", "zoe", "4", 10, 5.0, 1), Event("2", "zoe", "5", 30, None, 0),
    ])
    assert [event.item_id for event in user_events(release, database, "zoe", 9)] == ["5", "4"]
    with pytest.raises(UnknownUserError, match="'nobody'"):
        user_events(release, database, "nobody", 9)
