"""A source and its format -> which file holds what, and how its columns are called.

    recbole     <name>.inter, <name>.item, <name>.user (atomic files: tab, `name:type` header)
    movielens   ratings.dat, movies.dat, users.dat (`::`)   or   ratings.csv, movies.csv
    csv         interactions.csv (or interactions/*.csv), items.csv, users.csv; without the last,
                user fields may be columns of the interactions
    parquet     the same with .parquet
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from engine.config import SourceConfig
from engine.data.sources import SourceFile, find_file, list_source
from engine.data.tables import ParquetTable, Table, TextTable, read_header, require_columns
from engine.data.text import (
    AGES,
    GENDERS,
    OCCUPATIONS,
    Convert,
    code_table,
    known_word,
    pick_year,
    split_values,
    straight_title,
    title_without_year,
    year_of_title,
)
from engine.errors import ConfigError, DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FieldSource:
    """A column and how its text becomes the values of a field."""

    column: str
    convert: Convert


@dataclass(frozen=True, slots=True)
class Entities:
    """Items or users: their file, the id's column and the fields."""

    table: Table
    id_column: str
    fields: dict[str, FieldSource]
    title: FieldSource | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """What a source holds. `roles`: user, item, timestamp, rating, label -> column."""

    interactions: tuple[Table, ...]
    roles: dict[str, str]
    items: Entities | None = None
    users: Entities | None = None
    user_fields: dict[str, FieldSource] = field(default_factory=dict)
    """User fields that stand in the interactions; a user has the values of the first event."""

    def files(self) -> list[SourceFile]:
        """Return the files that are read."""
        entities = [entity.table for entity in (self.items, self.users) if entity is not None]
        return [table.file for table in (*self.interactions, *entities)]


def find_layout(config: SourceConfig) -> Layout:
    """Return the layout of `config.path`; DataError or ConfigError if something is missing."""
    files = list_source(config.path)
    layout = _FINDERS[config.format](files, config)
    needed = ["user", "item", "timestamp"]
    if config.label.kind == "threshold":
        needed.append("rating")
    if config.label.kind == "column":
        needed.append("label")
    absent = [role for role in needed if role not in layout.roles]
    if absent:
        raise ConfigError(
            f"source.label.kind {config.label.kind!r} needs columns for {absent}; "
            f"set source.columns, or choose another kind"
        )
    for table in layout.interactions:
        fields = [source.column for source in layout.user_fields.values()]
        require_columns(table, [*layout.roles.values(), *fields])
    for what, entities in (("items", layout.items), ("users", layout.users)):
        if entities is None and not (what == "users" and layout.user_fields):
            log.warning("source %s has no file of %s", config.path, what)
        if entities is not None:
            columns = [source.column for source in entities.fields.values()]
            title = [entities.title.column] if entities.title else []
            require_columns(entities.table, [entities.id_column, *title, *columns])
    return layout


def _pick(
    known: dict[str, FieldSource], fields: Sequence[str], what: str
) -> dict[str, FieldSource]:
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise ConfigError(f"source.{what} {unknown} are not in the source; it has {sorted(known)}")
    return {name: known[name] for name in fields}


def _movielens(files: Sequence[SourceFile], config: SourceConfig) -> Layout:
    dat, csv = find_file(files, "ratings.dat"), find_file(files, "ratings.csv")
    if dat is None and csv is None:
        raise DataError(f"source {config.path!r} has neither ratings.dat nor ratings.csv")
    genres = FieldSource("genres", split_values("|", drop=("(no genres listed)",)))
    known = {"genres": genres, "year": FieldSource("title", year_of_title)}
    fields = _pick(known, config.item_fields, "item_fields")
    roles = {"user": "user", "item": "item", "timestamp": "timestamp", "rating": "rating"}
    title = FieldSource("title", title_without_year)
    if dat is not None:
        rating = TextTable(dat, ("user", "item", "rating", "timestamp"), "::", header_lines=0)
        names: tuple[str, ...] = ("item", "title", "genres")
        movies = find_file(files, "movies.dat")
        table = movies and TextTable(movies, names, "::", header_lines=0, latin_1=True)
        items = Entities(table, "item", fields, title) if table else None
        return Layout((rating,), roles, items, _movielens_users(files, config))
    assert csv is not None
    rating = TextTable(csv, ("user", "item", "rating", "timestamp"), ",", quoted=True)
    movies = find_file(files, "movies.csv")
    table = movies and TextTable(movies, ("item", "title", "genres"), ",", quoted=True)
    items = Entities(table, "item", fields, title) if table else None
    return Layout((rating,), roles, items, None)


def _movielens_users(files: Sequence[SourceFile], config: SourceConfig) -> Entities | None:
    users = find_file(files, "users.dat")
    if users is None:
        return None
    known = {
        "gender": FieldSource("gender", code_table(GENDERS)),
        "age": FieldSource("age", code_table(AGES)),
        "occupation": FieldSource("occupation", code_table(OCCUPATIONS)),
        "zip_code": FieldSource("zip_code", known_word),
    }
    table = TextTable(
        users, ("user", "gender", "age", "occupation", "zip_code"), "::", header_lines=0,
        latin_1=True,
    )
    return Entities(table, "user", _pick(known, config.user_fields, "user_fields"))


_ALIASES = {
    "title": ("movie_title", "title", "item_name", "name"),
    "year": ("release_year", "year"),
    "genres": ("class", "genres", "genre", "categories"),
}


def _recbole(files: Sequence[SourceFile], config: SourceConfig) -> Layout:
    inter = _atomic(files, "inter")
    if inter is None:
        raise DataError(f"source {config.path!r} has no *.inter file")
    columns = {
        "user": "user_id", "item": "item_id", "timestamp": "timestamp", "rating": "rating",
        "label": "label",
    }
    optional = ("rating", "label")
    roles = {
        role: name for role, name in columns.items()
        if role not in optional or name in inter.columns
    }
    items, users = _atomic(files, "item"), _atomic(files, "user")
    return Layout(
        (inter,), roles,
        _recbole_items(items, config.item_fields) if items else None,
        _recbole_users(users, config.user_fields) if users else None,
    )


def _atomic(files: Sequence[SourceFile], kind: str) -> TextTable | None:
    found = [file for file in files if file.name.endswith(f".{kind}")]
    if len(found) > 1:
        raise DataError(f"source has {len(found)} *.{kind} files: {[file.name for file in found]}")
    if not found:
        return None
    names = tuple(name.partition(":")[0] for name in read_header(found[0], "\t"))
    return TextTable(found[0], names, "\t")


def _recbole_items(table: TextTable, fields: Sequence[str]) -> Entities:
    header = read_header(table.file, "\t")
    known: dict[str, FieldSource] = {}
    for name in header:
        column, _, kind = name.partition(":")
        role = next((role for role, names in _ALIASES.items() if column in names), column)
        convert = split_values(" ") if kind.endswith("_seq") else known_word
        known.setdefault(role, FieldSource(column, pick_year if role == "year" else convert))
    title = known.pop("title", None)
    titled = FieldSource(title.column, straight_title) if title else None
    return Entities(table, "item_id", _pick(known, fields, "item_fields"), titled)


def _recbole_users(table: TextTable, fields: Sequence[str]) -> Entities:
    known = {name: FieldSource(name, known_word) for name in table.columns if name != "user_id"}
    if "gender" in known:
        known["gender"] = FieldSource("gender", code_table(GENDERS))
    return Entities(table, "user_id", _pick(known, fields, "user_fields"))


def _generic(files: Sequence[SourceFile], config: SourceConfig) -> Layout:
    tables = _generic_tables(files, config.format, "interactions")
    if not tables:
        raise DataError(
            f"source {config.path!r} has no interactions.{config.format}; it has "
            f"{[file.name for file in files]}"
        )
    names = config.columns
    columns = {
        "user": names.user, "item": names.item, "timestamp": names.timestamp,
        "rating": names.rating, "label": names.label,
    }
    roles = {role: name for role, name in columns.items() if name is not None}
    items = _generic_tables(files, config.format, "items")
    users = _generic_tables(files, config.format, "users")
    inline = [name for name in config.user_fields if not users and name in tables[0].columns]
    missing = [name for name in config.user_fields if inline and name not in inline]
    if missing:
        raise ConfigError(
            f"source.user_fields {missing} are not columns of the interactions, where "
            f"{inline} are; there are {list(tables[0].columns)}"
        )
    return Layout(
        tuple(tables), roles,
        _generic_items(items[0], config) if items else None,
        _generic_users(users[0], config) if users else None,
        {name: FieldSource(name, split_values("|")) for name in inline},
    )


def _generic_tables(files: Sequence[SourceFile], kind: str, name: str) -> list[Table]:
    """Return `name.kind`, or every *.kind file in a folder `name`."""
    one = find_file(files, f"{name}.{kind}")
    if one is not None:
        return [_open_table(one, kind)]
    parts = [
        file for file in files
        if f"/{file.member or file.uri}".split("/")[-2] == name and file.name.endswith(f".{kind}")
    ]
    return [_open_table(file, kind) for file in parts]


def _open_table(file: SourceFile, kind: str) -> Table:
    if kind == "csv":
        return TextTable(file, read_header(file, ","), ",", quoted=True)
    with file.open() as stream:
        try:
            return ParquetTable(file, tuple(pq.read_schema(stream).names))
        except pa.ArrowInvalid as error:
            raise DataError(f"{file.name} is not Parquet: {error}") from error


def _generic_items(table: Table, config: SourceConfig) -> Entities:
    names = config.columns
    known = {name: FieldSource(name, split_values("|")) for name in table.columns}
    title = FieldSource(names.item_title, known_word) if names.item_title in known else None
    return Entities(table, names.item, _pick(known, config.item_fields, "item_fields"), title)


def _generic_users(table: Table, config: SourceConfig) -> Entities:
    known = {name: FieldSource(name, split_values("|")) for name in table.columns}
    fields = _pick(known, config.user_fields, "user_fields")
    return Entities(table, config.columns.user, fields)


_FINDERS = {
    "recbole": _recbole, "movielens": _movielens, "csv": _generic, "parquet": _generic,
}
