import threading

import numpy as np
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, text

from engine.state.database import MIGRATIONS, open_database, writing
from engine.state.deletions import delete_user
from engine.state.items import (
    ItemState,
    SentItem,
    items_since,
    items_to_embed,
    newest_revision,
    put_items,
    store_vectors,
)
from engine.state.profiles import put_profiles, read_profile

HEAT = SentItem("9", "Heat", {"genres": ("Action", "Crime")})
ODD = SentItem("ä'\"", "<b>'; DROP TABLE items; --", {})
STORED, UNCHANGED = ItemState.STORED, ItemState.UNCHANGED


def revision_of(database: Engine) -> int:
    with database.connect() as connection:
        return newest_revision(connection)


def test_items_are_read_as_they_were_sent_in_the_order_in_which_they_came(
    database: Engine,
) -> None:
    assert items_since(database, 0, "e") == []
    assert put_items(database, [HEAT]) == [STORED]
    assert put_items(database, [ODD, SentItem("1", "One")]) == [STORED, STORED]
    assert put_items(database, []) == []
    found = items_since(database, 0, "e")
    assert [each.item for each in found] == [HEAT, SentItem("1", "One"), ODD]
    assert [(each.first_revision, each.revision) for each in found] == [(1, 1), (2, 2), (2, 2)]
    assert [each.item for each in items_since(database, 1, "e")] == [SentItem("1", "One"), ODD]
    assert items_since(database, 2, "e") == []


def test_the_same_item_again_is_no_change(database: Engine) -> None:
    put_items(database, [HEAT])
    renamed = SentItem("9", "Heat (1995)", HEAT.fields)
    assert put_items(database, [HEAT, ODD]) == [UNCHANGED, STORED]
    assert put_items(database, [renamed]) == [STORED]
    heat, odd = sorted(items_since(database, 0, "e"), key=lambda each: each.item.item_id)
    assert (heat.item, heat.first_revision, heat.revision) == (renamed, 1, 3)
    assert (odd.item, odd.first_revision, odd.revision) == (ODD, 2, 2)


def test_a_withdrawn_item_keeps_what_it_was_until_it_is_sent_again(database: Engine) -> None:
    put_items(database, [HEAT])
    store_vectors(database, "e", items_since(database, 0, "e"), np.ones((1, 3), np.float32))
    gone = SentItem("9", is_withdrawn=True)
    assert put_items(database, [gone, SentItem("x", is_withdrawn=True)]) == [STORED, STORED]
    assert put_items(database, [gone]) == [UNCHANGED]
    heat, other = items_since(database, 0, "e")
    assert heat.item == SentItem("9", "Heat", HEAT.fields, is_withdrawn=True)
    assert heat.vector_H is not None
    assert other.item == SentItem("x", None, {}, is_withdrawn=True)
    assert put_items(database, [HEAT]) == [STORED]
    [back] = items_since(database, other.revision, "e")
    assert (back.item, back.vector_H is not None) == (HEAT, True)


def test_vectors_belong_to_an_encoder_and_a_text(database: Engine) -> None:
    put_items(database, [HEAT, ODD])
    put_items(database, [SentItem("x", is_withdrawn=True)])
    wanted = items_to_embed(database, "new", 0, 9)
    assert [each.item for each in wanted] == [HEAT, ODD]
    assert len(items_to_embed(database, "new", 0, 1)) == 1
    assert items_to_embed(database, "new", 1, 9) == []
    vectors = np.array([[1, 2.5], [3, -4]], np.float32)
    before = revision_of(database)
    store_vectors(database, "new", wanted, vectors)
    found = items_since(database, before, "new")
    np.testing.assert_array_equal([each.vector_H for each in found], vectors)
    assert [each.vector_H for each in items_since(database, before, "other")] == [None, None]
    assert items_to_embed(database, "new", 0, 9) == []
    assert len(items_to_embed(database, "other", 0, 9)) == 2
    store_vectors(database, "other", items_to_embed(database, "other", 0, 9), vectors[:, :1])
    assert items_to_embed(database, "new", 0, 9) == items_to_embed(database, "other", 0, 9) == []
    put_items(database, [SentItem("9", "Heat 2", HEAT.fields)])
    [changed] = items_to_embed(database, "new", 0, 9)
    assert (changed.item.title, changed.vector_H) == ("Heat 2", None)
    store_vectors(database, "new", [], vectors[:0])


def test_a_vector_of_a_text_that_changed_meanwhile_is_not_used(database: Engine) -> None:
    put_items(database, [HEAT])
    read = items_to_embed(database, "e", 0, 9)
    put_items(database, [SentItem("9", "Heat 2")])
    store_vectors(database, "e", read, np.ones((1, 2), np.float32))
    [again] = items_to_embed(database, "e", 1, 9)
    assert (again.item.title, again.vector_H) == ("Heat 2", None)
    store_vectors(database, "e", [again], np.full((1, 2), 2, np.float32))
    store_vectors(database, "e", read, np.ones((1, 2), np.float32))     # late, and of before
    [kept] = items_since(database, 0, "e")
    np.testing.assert_array_equal(kept.vector_H, [2, 2])


def test_who_saw_a_revision_misses_nothing_that_is_sent_at_the_same_time(database: Engine) -> None:
    def send(sender: int) -> None:
        for number in range(10):
            put_items(database, [SentItem(f"{sender}-{number}", "title")])

    threads = [threading.Thread(target=send, args=(sender,)) for sender in range(4)]
    for thread in threads:
        thread.start()
    seen: dict[str, int] = {}
    revision = 0
    while any(thread.is_alive() for thread in threads) or revision < revision_of(database):
        for each in items_since(database, revision, "e"):
            seen[each.item.item_id] = each.revision
            revision = max(revision, each.revision)
    for thread in threads:
        thread.join()
    assert len(seen) == 40
    assert sorted(seen.values()) == list(range(1, 41))


def test_profiles_are_replaced_whole_and_go_with_their_user(database: Engine) -> None:
    assert read_profile(database, "ann") is None
    put_profiles(database, {"ann": {"age": ("30",), "job": ("ä", "b")}, "bob": {}})
    put_profiles(database, {"bob": {"age": ("7",)}})
    assert read_profile(database, "ann") == {"age": ("30",), "job": ("ä", "b")}
    assert read_profile(database, "bob") == {"age": ("7",)}
    put_profiles(database, {})
    delete_user(database, "ann")
    assert read_profile(database, "ann") is None
    assert read_profile(database, "bob") is not None


@pytest.mark.parametrize("count", [501, 1200])
def test_many_items_are_stored_with_one_revision(database: Engine, count: int) -> None:
    items = [SentItem(f"{number:05}", "t") for number in range(count)]
    assert set(put_items(database, items)) == {STORED}
    assert {each.revision for each in items_since(database, 0, "e")} == {1}
    assert put_items(database, items) == [UNCHANGED] * count


def test_a_database_of_before_the_vectors_had_a_table_is_brought_up_to_date(
    database_url: str,
) -> None:
    engine = open_database(database_url)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with writing(engine).begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0004")
        connection.execute(text(
            "INSERT INTO items (item_id, title, fields, is_withdrawn, first_revision, revision,"
            " encoder) VALUES ('9', 'Heat', '{}', :no, 1, 4, 'e')"
        ), {"no": False})
    engine.dispose()
    engine = open_database(database_url)
    [item] = items_to_embed(engine, "e", 0, 9)
    assert (item.item, item.text_revision) == (SentItem("9", "Heat"), 4)
    assert put_items(engine, [SentItem("9", "Heat")]) == [UNCHANGED]
    engine.dispose()
