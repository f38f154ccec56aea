"""Cells of items and users -> values: titles, years, lists, and GroupLens' codes as words."""

import re
from collections.abc import Callable, Collection, Mapping
from functools import partial

Convert = Callable[[str], tuple[str, ...]]
"""Text of a cell -> values; none where the source knows nothing."""

MISSING = frozenset({"", "unknown", "unkonwn", "nan", "none", "null", "n/a"})
"""Words for "not known", in lower case; the misspelled one stands in MovieLens-100K."""

GENDERS = {"M": "male", "F": "female"}
AGES = {
    "1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49", "50": "50-55",
    "56": "56+",
}
OCCUPATIONS = dict(enumerate((
    "other", "academic/educator", "artist", "clerical/admin", "college/grad student",
    "customer service", "doctor/health care", "executive/managerial", "farmer", "homemaker",
    "K-12 student", "lawyer", "programmer", "retired", "sales/marketing", "scientist",
    "self-employed", "technician/engineer", "tradesman/craftsman", "unemployed", "writer",
)))

_YEAR_AT_END = re.compile(r"\s*\((\d{4})(?:-\d{0,4})?\)\s*$")
_ARTICLE = re.compile(
    r"^(?P<name>.+), (?P<article>The|A|An|Les|Le|La|L'|Il|Lo|El|Los|Las|Die|Der|Das|Un|Una|Une)"
    r"(?P<rest> \(.*\))?$"
)


def known_word(cell: str) -> tuple[str, ...]:
    """Return the trimmed text as one value."""
    word = cell.strip()
    return () if word.lower() in MISSING else (word,)


def split_values(delimiter: str, drop: Collection[str] = ()) -> Convert:
    """Return the converter of a cell that holds several values; a repeated value counts once."""
    return partial(_split, delimiter, frozenset(drop))


def _split(delimiter: str, drop: Collection[str], cell: str) -> tuple[str, ...]:
    words = (word for part in cell.split(delimiter) for word in known_word(part))
    return tuple(dict.fromkeys(word for word in words if word not in drop))


def code_table(words: Mapping[str, str] | Mapping[int, str]) -> Convert:
    """Return the converter of codes to words; a code that the table lacks stays as it is."""
    return partial(_decode, {str(code): word for code, word in words.items()})


def _decode(words: Mapping[str, str], cell: str) -> tuple[str, ...]:
    return tuple(words.get(code, code) for code in known_word(cell))


def pick_year(cell: str) -> tuple[str, ...]:
    """Return a year of four digits."""
    word = cell.strip()
    return (word,) if re.fullmatch(r"\d{4}", word) else ()


def year_of_title(cell: str) -> tuple[str, ...]:
    """Return the year that ends a GroupLens title: `Heat (1995)` -> 1995."""
    found = _YEAR_AT_END.search(cell)
    return (found.group(1),) if found else ()


def straight_title(cell: str) -> tuple[str, ...]:
    """Return the title with its article in front: `Net, The` -> `The Net`."""
    title = cell.strip()
    found = _ARTICLE.match(title)
    if found:
        space = "" if found["article"].endswith("'") else " "
        title = f"{found['article']}{space}{found['name']}{found['rest'] or ''}"
    return (title,) if title else ()


def title_without_year(cell: str) -> tuple[str, ...]:
    """Return a GroupLens title as people say it: `Net, The (1995)` -> `The Net`."""
    return straight_title(_YEAR_AT_END.sub("", cell))
