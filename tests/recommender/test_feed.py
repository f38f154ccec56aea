import gc
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete
from sqlalchemy.exc import OperationalError

from engine.config import RetrievalConfig
from engine.data.catalogue import Catalogue
from engine.errors import UnknownItemError
from engine.models.base import load_base_model
from engine.models.crm_scorer import CRMScorer
from engine.models.text_encoder import BaseModelEncoder
from engine.recommender.candidates import Filters, popular_items
from engine.recommender.feed import (
    EMBEDDED_TOGETHER,
    Embedded,
    Embedder,
    Feed,
    with_items,
)
from engine.recommender.lookup import Query, answer, find
from engine.recommender.release import LoadedRelease, items_by_value
from engine.retrieval.index import ExactIndex, PatchedIndex, build_index
from engine.retrieval.item_text import item_text
from engine.state.database import ITEM_VECTORS, ITEMS, writing
from engine.state.events import Event, append
from engine.state.items import (
    SentItem,
    items_since,
    items_to_embed,
    put_items,
    store_vectors,
)
from engine.types import AnswerMode, History
from tests.recommender.test_lookup import RANKING
from tests.tiny_release import TinyWorld

NEW = SentItem("new-1", "Zeppelin", {"genres": ("Airship", "Drama"), "year": ("1999",)})


def answered(
    release: LoadedRelease, database: Engine, query: Query
) -> tuple[AnswerMode, list[str]]:
    [ranking] = answer(release, [find(release, database, query, RANKING)])
    return ranking.mode, [item.item_id for item in ranking.items]


def test_an_item_that_was_sent_is_found_scored_and_shown_at_once(
    world: TinyWorld, release: LoadedRelease, seeded: Engine
) -> None:
    feed, user_id = Feed(seeded), sorted(world.histories)[0]
    airships = Query(k=3, user_id=user_id, filters=Filters(fields={"genres": ["Airship"]}))
    assert feed.current(release) is release
    put_items(seeded, [NEW])
    Embedder(seeded).embed(release)
    current = feed.current(release)
    assert answered(current, seeded, airships) == (AnswerMode.FULL, ["new-1"])
    whole = Query(k=2, user_id=user_id, item_ids=["1", "new-1"], is_scored_whole=True)
    [ranking] = answer(current, [find(current, seeded, whole, RANKING)])
    [new] = [item for item in ranking.items if item.item_id == "new-1"]
    assert (new.title, new.llm_score is None) == ("Zeppelin", False)
    append(seeded, [Event("e", user_id, "new-1", 2_000_000_000, 5.0, 1)])
    assert find(current, seeded, airships, RANKING).newest[0].title == "Zeppelin"
    with pytest.raises(UnknownItemError):
        find(release, seeded, whole, RANKING)               # the release itself is as it was


def test_a_withdrawn_item_is_never_answered_until_it_is_sent_again(
    world: TinyWorld, release: LoadedRelease, seeded: Engine
) -> None:
    feed, user_id = Feed(seeded), sorted(world.histories)[0]
    own = Query(k=40, user_id=user_id)
    [best, *_] = answered(release, seeded, own)[1]
    queries = [
        own, replace(own, user_id=None, guest=[]), replace(own, item_ids=[best, "new-1"]),
        replace(own, item_ids=[best], is_scored_whole=True),
    ]
    put_items(seeded, [NEW, SentItem(best, is_withdrawn=True)])
    put_items(seeded, [replace(NEW, is_withdrawn=True)])
    current = feed.current(release)
    for query in queries:
        assert not {best, "new-1"} & set(answered(current, seeded, query)[1])
    title = release.catalogue.titles[release.catalogue.index_of(best)]
    put_items(seeded, [SentItem(best, title), NEW])
    again = feed.current(release)
    assert best in answered(again, seeded, queries[1])[1]
    assert set(answered(again, seeded, queries[2])[1]) == {best, "new-1"}


def test_withdrawing_and_what_is_as_it_was_copy_nothing(
    release: LoadedRelease, database: Engine
) -> None:
    catalogue = release.catalogue
    same = SentItem("4", catalogue.titles[catalogue.index_of("4")],
                    catalogue.values_of(catalogue.index_of("4")))
    put_items(database, [same, SentItem("5", is_withdrawn=True)])
    current = with_items(release, items_since(database, 0, ""), release)
    assert current.crm is release.crm
    assert current.item_index is release.item_index
    assert current.revision == 1
    assert np.flatnonzero(release.offered_I != current.offered_I).tolist() == [
        catalogue.index_of("5")
    ]


def test_withdrawing_a_sent_item_copies_nothing(
    release: LoadedRelease, database: Engine
) -> None:
    feed = Feed(database)
    put_items(database, [NEW])
    before = feed.current(release)
    put_items(database, [replace(NEW, is_withdrawn=True)])
    after = feed.current(release)
    assert (after.catalogue, after.crm) == (before.catalogue, before.crm)
    assert after.catalogue is before.catalogue
    assert not after.offered_I[-1]


def whole_release(release: LoadedRelease, current: LoadedRelease) -> LoadedRelease:
    """Return the release that one made of today's catalogue would be."""
    catalogue, crm = current.catalogue, release.crm
    fresh = Catalogue(catalogue.item_ids, catalogue.titles, catalogue.fields)
    space = crm.maps.space(fresh, current.vectors_ID, crm.space.crm, crm.space.source)
    scorer = CRMScorer(crm.model, crm.maps, space)
    return replace(
        current, catalogue=fresh, crm=scorer, item_index=ExactIndex(scorer.item_vectors()),
        items_by_value=items_by_value(fresh),
    )


def assert_equal(one: LoadedRelease, other: LoadedRelease) -> None:
    assert one.catalogue == other.catalogue
    assert one.revision == other.revision
    np.testing.assert_array_equal(one.offered_I, other.offered_I)
    np.testing.assert_allclose(one.item_index.vectors_ID, other.item_index.vectors_ID, atol=1e-5)
    tables = one.crm.space.items, other.crm.space.items
    for name in (each.name for each in fields(tables[0])):
        a, b = (getattr(table, name) for table in tables)
        width = min(each.shape[1] for each in (a, b)) if a.ndim > 1 else None
        np.testing.assert_array_equal(a[..., :width], b[..., :width], err_msg=name)
        assert width is None or not (a[:, width:].any() or b[:, width:].any()), name
    for name in ("scores", "positives", "events"):
        np.testing.assert_array_equal(
            getattr(one.popularity, name), getattr(other.popularity, name)
        )
    assert set(one.items_by_value) == set(other.items_by_value)
    for name, values in one.items_by_value.items():
        assert {value: items.tolist() for value, items in values.items()} == {
            value: items.tolist() for value, items in other.items_by_value[name].items()
        }


ITEMS_SENT = st.builds(
    SentItem, st.sampled_from(["3", "7", "new-a", "new-b", "new-c"]),
    st.sampled_from(["One", "Two"]),
    st.fixed_dictionaries({}, optional={
        "genres": st.lists(st.sampled_from(["Drama", "Odd", "Action"]), max_size=10).map(tuple),
        "year": st.sampled_from([(), ("1990",)]),
    }),
    st.booleans(),
)
STEPS = st.lists(
    st.one_of(
        st.lists(ITEMS_SENT, min_size=1, max_size=3, unique_by=lambda item: item.item_id),
        st.just("embed"), st.just("look"),
    ),
    max_size=8,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture],
          deadline=None)
@given(STEPS)
def test_changes_one_by_one_or_together_give_the_release_made_of_that_catalogue(
    release: LoadedRelease, database: Engine, steps: list[list[SentItem] | str]
) -> None:
    with writing(database).begin() as connection:
        connection.execute(delete(ITEMS))
        connection.execute(delete(ITEM_VECTORS))
    feed, now = Feed(database), release
    for step in steps:
        if isinstance(step, list):
            put_items(database, step)
        elif step == "embed":
            Embedder(database).embed(release)
        else:
            now = feed.current(release)
    now = feed.current(release)
    if now is release:
        return
    assert_equal(now, Feed(database).current(release))
    assert_equal(now, whole_release(release, now))
    unseen = now.popularity.scores[len(release.catalogue):]
    assert unseen.tolist() == pytest.approx([mean_logit(release)] * len(unseen))


def mean_logit(release: LoadedRelease) -> float:
    popularity = release.popularity
    mean = (popularity.positives.sum() + 0.5) / (popularity.events.sum() + 1)
    return float(np.log(mean / (1 - mean)))


def test_texts_are_read_by_the_base_model_without_its_bank(
    world: TinyWorld, release: LoadedRelease, database: Engine
) -> None:
    put_items(database, [NEW, SentItem("gone", is_withdrawn=True)])
    assert Embedder(database).embed(release) == Embedded(1, is_all=True)
    assert Embedder(database).embed(release) == Embedded(0, is_all=True)
    current = Feed(database).current(release)
    plain = BaseModelEncoder(*load_base_model(world.base))
    raw_1H = plain.encode([item_text("Zeppelin", NEW.fields)])
    np.testing.assert_allclose(
        current.vectors_ID[current.catalogue.index_of("new-1")],
        release.item_texts.projector.project(raw_1H)[0], atol=1e-5,
    )
    put_items(database, [SentItem("other", "Other")])
    with pytest.raises(ValueError, match="without language model"):
        Embedder(database).embed(replace(release, language=None))


def test_a_vector_of_another_encoder_is_not_used_and_made_anew(
    release: LoadedRelease, database: Engine
) -> None:
    put_items(database, [NEW])
    other = replace(release, item_texts=replace(release.item_texts, encoder="other"))
    Embedder(database).embed(other)
    place = len(release.catalogue)
    assert not Feed(database).current(release).vectors_ID[place].any()
    assert Feed(database).current(other).vectors_ID[place].any()
    assert Embedder(database).embed(release).items == 1
    assert Feed(database).current(release).vectors_ID[place].any()


def test_a_scorer_catches_up_only_where_it_lacks_what_the_retriever_saw(
    release: LoadedRelease, database: Engine
) -> None:
    feed = Feed(database)
    put_items(database, [NEW])
    seen = feed.current(release)
    put_items(database, [SentItem("new-2", "Two")])
    assert feed.current(release, seen.revision) is seen
    late = feed.current(release, seen.revision + 1)
    assert "new-2" in late.catalogue
    assert feed.current(release, seen.revision) is late     # an item keeps its index
    assert late.catalogue.index_of("new-1") == seen.catalogue.index_of("new-1")


def test_a_large_catalogue_is_not_indexed_anew_for_an_item(
    world: TinyWorld, release: LoadedRelease, seeded: Engine
) -> None:
    settings = RetrievalConfig(exact_items=10, probes=100)
    large = replace(release, item_index=build_index(release.item_index.vectors_ID, settings))
    put_items(seeded, [NEW, SentItem("3", "Other", {"genres": ("Odd",)})])
    Embedder(seeded).embed(release)
    patched, exact = Feed(seeded).current(large), Feed(seeded).current(release)
    assert isinstance(patched.item_index, PatchedIndex)
    assert patched.item_index.before is large.item_index
    for user_id in world.histories:
        query = Query(k=3, user_id=user_id)
        assert answered(patched, seeded, query) == answered(exact, seeded, query)


def test_releases_of_two_encoders_leave_each_other_s_vectors_alone(
    release: LoadedRelease, database: Engine
) -> None:
    other = replace(release, item_texts=replace(release.item_texts, encoder="other"))
    embedder, place = Embedder(database), len(release.catalogue)
    put_items(database, [NEW])
    turns = (release, other, release, other)
    assert [embedder.embed(each).items for each in turns] == [1, 1, 0, 0]
    assert all(Feed(database).current(each).vectors_ID[place].any() for each in (release, other))


def test_vectors_of_another_width_are_left_out(release: LoadedRelease, database: Engine) -> None:
    put_items(database, [NEW])
    encoder = release.item_texts.encoder
    wanted = items_to_embed(database, encoder, 0, 9)
    store_vectors(database, encoder, wanted, np.ones((1, 3), np.float32))
    current = Feed(database).current(release)
    assert "new-1" in current.catalogue
    assert not current.vectors_ID[len(release.catalogue)].any()


def test_a_text_that_cannot_be_read_keeps_no_other_from_being_read(
    release: LoadedRelease, database: Engine, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    encode = BaseModelEncoder.encode

    def fussy(self: BaseModelEncoder, texts: list[str]) -> Any:
        if any("bad" in text for text in texts):
            raise RuntimeError("no such token")
        return encode(self, texts)

    monkeypatch.setattr(BaseModelEncoder, "encode", fussy)
    put_items(database, [NEW, SentItem("b", "bad"), SentItem("c", "good")])
    embedder = Embedder(database)
    assert embedder.embed(release) == Embedded(2, is_all=False)
    assert "'b' cannot be read: no such token" in caplog.text
    assert embedder.embed(release) == Embedded(0, is_all=False)     # it is tried again
    monkeypatch.undo()                  # the fault was the encoder's
    assert embedder.embed(release) == Embedded(1, is_all=True)
    assert embedder.embed(release) == Embedded(0, is_all=True)


def test_an_encoder_that_fails_is_not_asked_for_every_text(
    release: LoadedRelease, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def fail(_: BaseModelEncoder, texts: list[str]) -> Any:
        asked.append(len(texts))
        raise RuntimeError("no memory")

    monkeypatch.setattr(BaseModelEncoder, "encode", fail)
    put_items(database, [SentItem(str(number), str(number)) for number in range(1000, 1100)])
    assert Embedder(database).embed(release) == Embedded(0, is_all=False)
    assert asked == [EMBEDDED_TOGETHER, *[1] * EMBEDDED_TOGETHER]


def test_many_items_are_read_in_several_calls_the_newest_first(
    release: LoadedRelease, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.recommender.feed.READ_AT_ONCE", 2)
    embedder = Embedder(database)
    for name in ("a", "b", "c"):
        put_items(database, [SentItem(name, name)])
    assert embedder.embed(release) == Embedded(2, is_all=False)
    [left] = items_to_embed(database, release.item_texts.encoder, 0, 9)
    assert left.item.item_id == "a"
    put_items(database, [SentItem("d", "d")])
    assert embedder.embed(release).items == 2
    assert embedder.embed(release) == Embedded(0, is_all=True)


def test_the_catalogue_sent_as_it_is_changes_nothing(
    release: LoadedRelease, database: Engine
) -> None:
    catalogue = release.catalogue
    put_items(database, [
        SentItem(catalogue.item_ids[item], catalogue.titles[item], {
            name: values for name, values in catalogue.values_of(item).items() if values
        })
        for item in range(1, len(catalogue))
    ])
    Embedder(database).embed(release)
    current = Feed(database).current(release)
    assert current.item_index is release.item_index
    assert current.catalogue is catalogue


def test_requests_that_wait_for_a_change_pay_for_it_once(
    release: LoadedRelease, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def slowly(*arguments: Any) -> LoadedRelease:
        made.append(1)
        time.sleep(0.2)
        return with_items(*arguments)

    monkeypatch.setattr("engine.recommender.feed.with_items", slowly)
    put_items(database, [NEW])
    feed = Feed(database)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: feed.current(release), range(4)))
    assert len(made) == 1
    assert all(each is found[0] for each in found)


def test_a_release_that_is_dropped_is_not_kept(release: LoadedRelease, database: Engine) -> None:
    feed, loaded = Feed(database), replace(release)
    put_items(database, [NEW])
    kept = weakref.ref(feed.current(loaded))
    assert feed.current(loaded) is kept()
    del loaded
    gc.collect()
    assert kept() is None


def test_while_the_database_is_away_the_catalogue_of_before_answers(
    release: LoadedRelease, database: Engine, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    feed = Feed(database)
    put_items(database, [NEW])
    before = feed.current(release)

    def fail(*_: Any) -> None:
        raise OperationalError("SELECT", {}, OSError("away"))

    monkeypatch.setattr("engine.recommender.feed.newest_revision", fail)
    assert feed.current(release) is before
    assert "the catalogue of before" in caplog.text
    monkeypatch.setattr("engine.recommender.feed.items_since", fail)
    with pytest.raises(OperationalError):       # its items would have no place in it
        feed.current(release, before.revision + 1)
    assert feed.current(release, before.revision) is before


def test_a_release_that_is_loaded_again_starts_from_its_own_catalogue(
    release: LoadedRelease, database: Engine
) -> None:
    feed = Feed(database)
    put_items(database, [NEW])
    for base in (release, replace(release), replace(release, release_id="b"), release,
                 replace(release, release_id="c"), release):
        current = feed.current(base)
        assert (current.release_id, len(current.catalogue)) == (
            base.release_id, len(release.catalogue) + 1
        )
        assert current.profiles is base.profiles


def test_items_without_events_come_last_among_the_popular(
    release: LoadedRelease, database: Engine
) -> None:
    put_items(database, [NEW])
    current = Feed(database).current(release)
    found = popular_items(current, History.empty(), Filters(), len(current.catalogue))
    counts = current.popularity.positives[found]
    assert len(found) == len(current.catalogue) - 1
    assert (np.diff(counts) <= 0).all()
