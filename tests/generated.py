"""Small data sets in every layout the engine reads, from a seed; no row of a real data set.

Each writer returns the path to give as `source.path`. Users prefer some genres, so that a model can
learn something; times spread over 100 days.
"""

import csv
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

GENRES = ("Action", "Comedy", "Drama", "Horror", "Romance", "Western")
OCCUPATIONS = ("artist", "doctor", "lawyer", "writer")
START_S = 880_000_000
DAYS = 100


@dataclass(frozen=True)
class Sample:
    """What the writers write; ids are numbers as text, not in order of their number."""

    items: list[tuple[str, str, str, tuple[str, ...]]]      # id, title, year, genres
    users: list[tuple[str, int, str, str]]                  # id, age, gender (M, F), occupation
    events: list[tuple[str, str, int, int]]                 # user, item, rating 1 to 5, time in s


def make_sample(
    users: int = 40, items: int = 60, events: int = 1200, seed: int = 0, *, repeats: bool = False
) -> Sample:
    """Return a sample; with `repeats` a user may have an item again (at another time)."""
    rng = np.random.default_rng(seed)
    genres_of = [
        tuple(sorted(rng.choice(GENRES, rng.integers(1, 3), replace=False).tolist()))
        for _ in range(items)
    ]
    catalogue = [
        (str(item + 1), f"Title {item + 1}", str(1980 + item % 20), genres_of[item])
        for item in range(items)
    ]
    people = [
        (str(user + 1), int(rng.integers(16, 70)), "MF"[user % 2], str(rng.choice(OCCUPATIONS)))
        for user in range(users)
    ]
    taste = [set(rng.choice(GENRES, 3, replace=False)) for _ in range(users)]
    popularity = 1 / (np.arange(items) + 3.0)
    log = []
    seen: set[tuple[int, int]] = set()
    while len(log) < events:
        user = int(rng.integers(users))
        item = int(rng.choice(items, p=popularity / popularity.sum()))
        if (user, item) in seen and not repeats:
            if len(seen) > users * items / 2:
                raise ValueError(f"{events} events are too many for {users} users x {items} items")
            continue
        liked = len(taste[user] & set(genres_of[item])) > 0
        rating = int(np.clip(rng.normal(4.2 if liked else 2.3, 0.8), 1, 5))
        time_s = START_S + int(rng.integers(DAYS * 86_400))
        if (user, item) in seen and any(
            row[3] == time_s for row in log if (row[0], row[1]) == (str(user + 1), str(item + 1))
        ):
            continue
        seen.add((user, item))
        log.append((str(user + 1), str(item + 1), rating, time_s))
    return Sample(catalogue, people, log)


def write_recbole(
    folder: Path | str, users: int = 40, items: int = 60, events: int = 1200, seed: int = 0
) -> str:
    """Write RecBole atomic files as those of ml-100k: small.inter, small.item, small.user."""
    sample = make_sample(users, items, events, seed)
    path = _folder(folder)
    _lines(path / "small.inter", ["user_id:token\titem_id:token\trating:float\ttimestamp:float", *(
        f"{user}\t{item}\t{rating}\t{time_s}" for user, item, rating, time_s in sample.events
    )])
    _lines(path / "small.item", [
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq", *(
            f"{item}\t{title}\t{year}\t{' '.join(genres)}"
            for item, title, year, genres in sample.items
        ),
    ])
    _lines(path / "small.user", [
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token", *(
            f"{user}\t{age}\t{gender}\t{job}\t00000" for user, age, gender, job in sample.users
        ),
    ])
    return str(path)


def write_movielens_dat(
    folder: Path | str, users: int = 40, items: int = 60, events: int = 1200, seed: int = 0
) -> str:
    """Write ratings.dat, movies.dat (latin-1, with an accent) and users.dat as those of ml-1m."""
    sample = make_sample(users, items, events, seed)
    path = _folder(folder)
    _lines(path / "ratings.dat", ("::".join(map(str, event)) for event in sample.events))
    _lines(path / "movies.dat", (
        f"{item}::Caf\xe9 {title}, The ({year})::{'|'.join(genres)}"
        for item, title, year, genres in sample.items
    ), "latin-1")
    _lines(path / "users.dat", (
        f"{user}::{gender}::{25 if age < 35 else 56}::{place % 21}::00000"
        for place, (user, age, gender, _) in enumerate(sample.users)
    ))
    return str(path)


def write_movielens_csv(
    folder: Path | str, users: int = 40, items: int = 60, events: int = 1200, seed: int = 0
) -> str:
    """Write ratings.csv (half stars) and movies.csv (quoted titles) as those of ml-latest."""
    sample = make_sample(users, items, events, seed)
    path = _folder(folder)
    _lines(path / "ratings.csv", ["userId,movieId,rating,timestamp", *(
        f"{user},{item},{rating - 0.5},{time_s}" for user, item, rating, time_s in sample.events
    )])
    _lines(path / "movies.csv", ["movieId,title,genres", *(
        f'{item},"{title}, The ({year})",{"|".join(genres)}'
        for item, title, year, genres in sample.items
    )])
    return str(path)


def write_online_retail(
    folder: Path | str, users: int = 40, items: int = 60, events: int = 1200, seed: int = 0
) -> str:
    """Write interactions.csv (purchases, many repeated, in baskets of one time) and items.csv."""
    sample = make_sample(users, items, events, seed, repeats=True)
    path = _folder(folder)
    rows = {(user, item, t_s // 7_200 * 7_200): rating for user, item, rating, t_s in sample.events}
    _table(path / "interactions.csv", (
        "user_id", "item_id", "timestamp", "quantity", "unit_price", "country"
    ), (
        (user, item, time_s, rows[user, item, time_s], 1.25, ("France", "Spain")[int(user) % 2])
        for user, item, time_s in sorted(rows, key=lambda row: row[2])
    ))
    _table(path / "items.csv", ("item_id", "title"), (
        (item, f'{title.upper()}, "LARGE"') for item, title, _, _ in sample.items
    ))
    return str(path)


def zip_folder(folder: Path | str, inner: str = "") -> str:
    """Return the path of a .zip of a folder's files, below a folder `inner` if given."""
    path = Path(folder)
    target = path.with_name(f"{path.name}.zip")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        if inner:
            archive.writestr(f"{inner}/", "")
        for file in sorted(path.iterdir()):
            archive.write(file, f"{inner}/{file.name}" if inner else file.name)
    return str(target)


def _folder(folder: Path | str) -> Path:
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    return path


def _lines(path: Path, lines: Iterable[str], encoding: str = "utf-8") -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding=encoding)


def _table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])
