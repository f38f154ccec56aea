from dataclasses import replace

import numpy as np
import pytest

from engine.data.catalogue import Catalogue
from engine.recommender.release import LoadedRelease
from engine.recommender.titles import Titles, TitleSearch

TITLES = {
    "7": "Star Wars", "1": "Lone STAR", "9": "Caf\u00e9 \u0130stanbul", "a b": "Star\n  Trek",
    "12": "Stra\u00dfe", "star": "Another film", "5": "",
}
ORDER = ["1", "12", "9", "a b", "5", "7", "star"]        # most popular first

ALL = np.ones(1 + len(TITLES), bool)


@pytest.fixture
def titles() -> Titles:
    ids = list(TITLES)
    catalogue = Catalogue(
        ["", *ids], ["", *TITLES.values()], {"year": [(), *((str(n),) for n in range(len(ids)))]},
    )
    return Titles(catalogue, np.array([1 + ids.index(item_id) for item_id in ORDER]))


@pytest.mark.parametrize(("text", "found"), [
    ("wars", ["7"]), ("Star", ["1", "a b", "7"]), ("star", ["star", "1", "a b", "7"]),
    ("star trek", ["a b"]), (" TREK ", ["a b"]), ("trek star", []), ("STRASSE", ["12"]),
    ("CAF\u00c9", ["9"]), ("7", ["7"]), ("a b", ["a b"]), ("", ORDER), ("  ", ORDER), ("%", []),
    ("_tar", []), (".*", []), ("\u00a9", []), ("s\nl", []),
])
def test_a_title_that_contains_the_text_is_found(
    titles: Titles, text: str, found: list[str]
) -> None:
    assert [item.item_id for item in titles.search(text, 10, ALL)] == found
    assert [item.item_id for item in titles.search(text, 2, ALL)] == found[:2]


def test_what_is_found_has_its_fields(titles: Titles) -> None:
    [item] = titles.search("wars", 1, ALL)
    assert (item.title, item.fields) == ("Star Wars", {"year": ["0"]})


def test_what_is_not_offered_is_not_found(titles: Titles) -> None:
    offered = ALL.copy()
    offered[[1, 2]] = False             # 7 and 1
    assert [item.item_id for item in titles.search("star", 2, offered)] == ["star", "a b"]
    assert titles.search("7", 5, offered) == []
    assert [item.item_id for item in titles.search("", 3, offered)] == ["12", "9", "a b"]


def test_half_a_letter_of_utf_8_is_none(titles: Titles) -> None:
    """U+00E9 is the bytes C3 A9: neither U+00C3 nor U+00A9 is in it."""
    assert titles.search("\u00c3", 5, ALL) == []


def test_the_search_agrees_with_reading_every_title() -> None:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abc"), 3)) for _ in range(300)]
    catalogue = Catalogue(
        ["", *(f"i{n}" for n in range(len(words)))], ["", *words], {"none": [()] * 301},
    )
    order = rng.permutation(300) + 1
    titles = Titles(catalogue, order)
    for text in ("a", "ab", "cab", "bbb", "abca"):
        expected = [catalogue.item_ids[item] for item in order if text in catalogue.titles[item]]
        for limit in (1, 7, 1000):
            found = titles.search(text, limit, np.ones(301, bool))
            assert [each.item_id for each in found] == expected[:limit]


def test_the_titles_are_those_of_the_catalogue_that_is_searched(release: LoadedRelease) -> None:
    search = TitleSearch()
    first = release.catalogue.titles[1]
    assert search.search(release, first, 1)[0].title == first
    titles = ["", *(f"New {title}" for title in release.catalogue.titles[1:])]
    other = replace(release, catalogue=replace(release.catalogue, titles=titles))
    for each, found in ((other, 3), (release, 0), (other, 3)):
        assert len(search.search(each, "new title", 3)) == found
    gone = replace(release, offered_I=np.zeros_like(release.offered_I))
    assert search.search(gone, first, 3) == []
