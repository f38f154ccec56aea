"""Retriever without Ray while a challenger answers some users."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.config import ServingConfig
from engine.data.catalogue import Catalogue
from engine.errors import UnknownItemError
from engine.recommender.feed import Feed
from engine.recommender.lookup import Found, Query
from engine.releases.experiment import Experiment
from engine.serving.groups import Groups
from engine.serving.releases import Challenger, Held, ReleaseHolder
from engine.serving.retriever import GROUP_EVENTS, Retriever, SentEvent
from engine.state.database import open_database
from engine.state.histories import newest_events
from tests.tiny_release import tiny_world

NEW = "zz"
"""An item that one of the two releases knows."""


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return one of 40 items and one of 41."""
    world = tiny_world(tmp_path_factory.mktemp("retriever"))
    known = world.catalogue
    larger = replace(world, catalogue=Catalogue(
        [*known.item_ids, NEW], [*known.titles, "Zeppelin"],
        {name: [*column, ()] for name, column in known.fields.items()},
    ))
    world.publish("small")
    larger.publish("large")
    return {name: world.load(name, with_llm=False) for name in ("small", "large")}


@pytest.fixture
def retriever(tmp_path: Path) -> Iterator[Any]:
    """Return a retriever as Serve makes it, but for gauges."""
    made = object.__new__(Retriever.func_or_class)      # type: ignore[attr-defined]
    made.config = ServingConfig()
    made.database = open_database(f"sqlite:///{tmp_path}/state.db")
    made.feed, made.releases = Feed(made.database), ReleaseHolder(lambda *_: None)  # type: ignore[arg-type,return-value]
    made._events = Groups(made._store_together, GROUP_EVENTS, len)
    yield made
    made.database.dispose()


def hold(retriever: Any, live: Any, challenger: Any, *, is_shadow: bool = False) -> None:
    experiment = Experiment(challenger.release_id, 1.0, is_shadow, 0)
    retriever.releases.held = Held(live, None, Challenger(experiment, challenger))


def event(user_id: str) -> SentEvent:
    return SentEvent(f"e-{user_id}", user_id, NEW, int(time.time()), None, 1)


def test_what_a_challenger_recommended_may_be_reported(
    retriever: Any, releases: dict[str, Any]
) -> None:
    hold(retriever, releases["small"], releases["large"])
    [status] = asyncio.run(retriever.append([event("ann")]))
    assert (status.state, status.reason) == ("stored", None)
    [shown] = asyncio.run(retriever.user_events("ann", 10))
    assert shown.title == "Zeppelin"
    retriever.releases.held = Held(releases["small"])
    [status] = asyncio.run(retriever.append([event("bob")]))
    assert status.state == "rejected"
    assert NEW in (status.reason or "")


def test_what_the_live_release_alone_knows_may_be_reported_by_a_challengers_users(
    retriever: Any, releases: dict[str, Any]
) -> None:
    hold(retriever, releases["large"], releases["small"])
    [status] = asyncio.run(retriever.append([event("ann")]))
    assert (status.state, status.reason) == ("stored", None)


def test_ratings_of_both_arms_are_labelled_by_the_live_releases_rule(
    retriever: Any, releases: dict[str, Any]
) -> None:
    live, other = releases["large"], releases["small"]
    strict = other.source.model_copy(update={
        "label": other.source.label.model_copy(update={"threshold": 5.0})
    })
    hold(retriever, live, replace(other, source=strict))
    rated = replace(event("ann"), item_id="1", rating=4.0, label=None)
    asyncio.run(retriever.append([rated]))
    [stored] = newest_events(retriever.database, "ann", 1)
    assert (stored.rating, stored.label) == (4.0, 1)


def test_a_challenger_that_lacks_an_item_refuses_no_request(
    retriever: Any, releases: dict[str, Any]
) -> None:
    hold(retriever, releases["large"], releases["small"])
    guest = Query(k=3, user_id="ann", item_ids=[NEW])
    found = asyncio.run(retriever.find(guest, None))
    assert isinstance(found, Found)
    assert found.release_id == "large"
    assert asyncio.run(retriever.find(replace(guest, item_ids=None), None)).release_id == "small"
    for release_id, query in (("small", guest), (None, replace(guest, item_ids=["nowhere"]))):
        with pytest.raises(UnknownItemError):
            asyncio.run(retriever.find(query, release_id))


def test_no_release_is_its_own_shadow(retriever: Any, releases: dict[str, Any]) -> None:
    hold(retriever, releases["small"], releases["large"], is_shadow=True)
    query = Query(k=3, user_id="ann")
    shadows = {asked: asyncio.run(retriever.find(query, asked)).shadow_id
               for asked in (None, "small", "large")}
    assert shadows == {None: "large", "small": "large", "large": None}
    assert asyncio.run(retriever.find(replace(query, user_id=None, guest=[]), None)).shadow_id \
        is None


def test_events_of_many_users_ask_for_the_catalogue_once(
    retriever: Any, releases: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    current = retriever.feed.current

    def count(release: Any) -> Any:
        asked.append(release.release_id)
        return current(release)

    monkeypatch.setattr(retriever.feed, "current", count)
    retriever.releases.held = Held(releases["large"])
    statuses = asyncio.run(retriever.append([event(str(number)) for number in range(50)]))
    assert {status.state for status in statuses} == {"stored"}
    assert asked == ["large"]
