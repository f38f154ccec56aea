import pickle

import pytest

from engine.data.text import (
    AGES,
    OCCUPATIONS,
    code_table,
    known_word,
    pick_year,
    split_values,
    straight_title,
    title_without_year,
    year_of_title,
)


@pytest.mark.parametrize(("written", "title", "year"), [
    ("Heat (1995)", "Heat", ("1995",)),
    ("Shawshank Redemption, The (1994)", "The Shawshank Redemption", ("1994",)),
    ("American in Paris, An (1951)", "An American in Paris", ("1951",)),
    ("Avventura, L' (1960)", "L'Avventura", ("1960",)),
    ("Postman, The (Il Postino) (1994)", "The Postman (Il Postino)", ("1994",)),
    ("I, the Jury", "I, the Jury", ()),
    ("To Wong Foo, Thanks (1995)", "To Wong Foo, Thanks", ("1995",)),
    ("2001 (a film)", "2001 (a film)", ()),
    ("Babylon 5 (1994-1998)", "Babylon 5", ("1994",)),
])
def test_grouplens_titles_become_title_and_year(
    written: str, title: str, year: tuple[str, ...]
) -> None:
    assert title_without_year(written) == (title,)
    assert year_of_title(written) == year


def test_an_empty_title_is_no_title() -> None:
    assert straight_title("  ") == ()


@pytest.mark.parametrize("word", ["", "unknown", "unkonwn", " NaN "])
def test_words_for_not_known_are_no_value(word: str) -> None:
    assert known_word(word) == ()
    assert pick_year(word) == ()


def test_lists_are_split_without_repeats_and_dropped_words() -> None:
    assert split_values("|")("Action| Drama|Action||unknown") == ("Action", "Drama")
    assert split_values("|", drop=("(no genres listed)",))("(no genres listed)") == ()
    assert split_values(" ")("Animation Children's") == ("Animation", "Children's")


def test_codes_become_grouplens_words_and_others_stay() -> None:
    assert code_table(AGES)("56") == ("56+",)
    assert code_table(OCCUPATIONS)("20") == ("writer",)
    assert code_table(OCCUPATIONS)("99") == ("99",)


def test_converters_can_be_sent_to_workers() -> None:
    convert = pickle.loads(pickle.dumps(split_values("|", drop=("x",))))
    assert convert("a|x") == ("a",)
