from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import RequestError, UnknownItemError
from engine.recommender.candidates import (
    Filters,
    allowed_items,
    find_candidates,
    named_items,
    popular_items,
)
from engine.recommender.release import LoadedRelease
from engine.retrieval.index import ExactIndex
from engine.types import History, Profile
from tests.tiny_release import TinyWorld


def some_history(world: TinyWorld) -> History:
    return world.histories[sorted(world.histories)[0]]


def test_candidates_equal_a_loop_over_all_items(world: TinyWorld, release: LoadedRelease) -> None:
    user_id = sorted(world.histories)[0]
    history, profile = world.histories[user_id], world.profiles.of(user_id)
    state = release.crm.retrieval_states([history], [profile])[0]
    vectors = release.crm.item_vectors()
    seen = set(history.items.tolist())
    scored = [
        (-float(vectors[item] @ state), item) for item in range(1, len(world.catalogue))
        if item not in seen and "Drama" in world.catalogue.fields["genres"][item]
    ]
    found = find_candidates(
        release, history, profile, Filters(exclude_seen=True, fields={"genres": ["Drama"]}), 5
    )
    assert found.tolist() == [item for _, item in sorted(scored)[:5]]


def test_filters_come_before_the_limit(world: TinyWorld, release: LoadedRelease) -> None:
    history = some_history(world)
    whole = find_candidates(release, history, Profile(), Filters(), 100)
    first_ten = [world.catalogue.item_ids[item] for item in whole[:10]]
    rest = find_candidates(release, history, Profile(), Filters(exclude_items=first_ten), 10)
    assert rest.tolist() == whole[10:20].tolist()
    assert len(whole) == len(world.catalogue) - 1
    assert 0 not in whole


values = st.sampled_from(["Action", "Comedy", "Drama", "Horror", "no such genre"])


@settings(max_examples=50)
@given(
    genres=st.none() | st.lists(values, max_size=3),
    years=st.none() | st.lists(st.integers(1979, 2000).map(str), max_size=6),
    excluded=st.lists(st.integers(1, 45).map(str), max_size=8), seen=st.booleans(),
)
def test_filters_equal_a_check_of_each_item(
    world: TinyWorld, release: LoadedRelease, genres: list[str] | None, years: list[str] | None,
    excluded: list[str], seen: bool,
) -> None:
    history = some_history(world)
    fields = {
        name: wanted for name, wanted in (("genres", genres), ("year", years)) if wanted is not None
    }
    allowed = allowed_items(release, history, Filters(seen, excluded, fields))
    for item, item_id in enumerate(world.catalogue.item_ids):
        expected = item > 0 and item_id not in excluded
        expected &= not (seen and item in history.items)
        for name, wanted in fields.items():
            expected &= bool(set(wanted) & set(world.catalogue.fields[name][item]))
        assert allowed[item] == expected


def test_an_unknown_field_is_refused_by_name(release: LoadedRelease) -> None:
    with pytest.raises(RequestError, match=r"^filters\.fields\.colour: .*genres.*year"):
        allowed_items(release, History.empty(), Filters(fields={"colour": ["red"]}))


def test_named_items_keep_their_order_and_unknown_ones_are_named(release: LoadedRelease) -> None:
    ids = ["7", "3", "11"]
    items = named_items(release, ids)
    assert [release.catalogue.item_ids[item] for item in items] == ids
    with pytest.raises(UnknownItemError, match="'none'"):
        named_items(release, ["7", "none"])


def test_popular_items_are_those_of_most_positives(
    world: TinyWorld, release: LoadedRelease
) -> None:
    positives = release.popularity.positives
    found = popular_items(release, History.empty(), Filters(), 8)
    assert [positives[item] for item in found] == sorted(positives[1:], reverse=True)[:8]
    first = world.catalogue.item_ids[found[0]]
    rest = popular_items(release, History.empty(), Filters(exclude_items=[first]), 7)
    assert rest.tolist() == found[1:].tolist()


def test_ties_of_retrieval_go_to_the_smaller_item(release: LoadedRelease) -> None:
    flat = replace(release, item_index=ExactIndex(np.zeros_like(release.item_index.vectors_ID)))
    found = find_candidates(flat, History.empty(), Profile(), Filters(), 4)
    assert found.tolist() == [1, 2, 3, 4]
