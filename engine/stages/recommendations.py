"""A release and the stored histories -> the best items of every user (Ray Data).

    users/part-*.parquet               user_id, in the order given
    recommendations/part-*.parquet     schema.RECOMMENDATIONS, the users of the same part

Every actor holds the release and answers as the endpoint does: the same history, candidates,
ranking and prompts, several users in one forward pass. Time grows with the users, memory does not:
the driver sees one part of the stored ids at a time (a list given is held whole), an actor the
histories of one batch and the answers of one part.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
import torch
from sqlalchemy import Engine

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.config import ServingConfig
from engine.data.schema import RECOMMENDATIONS, part_name
from engine.errors import ConfigError, DataError
from engine.recommender.candidates import Filters
from engine.recommender.feed import Feed
from engine.recommender.loading import check_release, load_release
from engine.recommender.lookup import Query, answer, find
from engine.recommender.ranking import Ranking
from engine.recommender.release import LoadedRelease
from engine.releases.registry import Registry
from engine.stages.partitions import map_with_actors, takes_gpu
from engine.stages.progress import counted
from engine.state.database import open_database
from engine.state.histories import has_events, user_ids

USERS = "users"
ROWS = "recommendations"


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked for every user."""

    registry: str
    release_id: str
    serving: ServingConfig
    """As the endpoint's: database, base model, ranking, batch size, threads and device."""
    k: int = 10
    filters: Filters = field(default_factory=lambda: Filters(exclude_seen=True))
    num_actors: int = 1
    users_per_part: int = 1000

    def __post_init__(self) -> None:
        """Raise ConfigError for a number out of range."""
        if not 1 <= self.k <= self.serving.ranking.max_k:
            raise ConfigError(f"k: {self.k} is not in 1 to {self.serving.ranking.max_k} (max_k)")
        for name in ("num_actors", "users_per_part"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is less than 1")

    def settings(self) -> dict[str, Any]:
        """Return what the answers depend on, for the manifest; the database's URL stays out."""
        return {
            "release_id": self.release_id, "k": self.k,
            "ranking": self.serving.ranking.settings(),
            "retrieval": self.serving.retrieval.settings(),
            "exclude_seen": self.filters.exclude_seen,
            "exclude_items": list(self.filters.exclude_items),
            "fields": {name: list(values) for name, values in self.filters.fields.items()},
        }


def recommend(out: str, ask: Ask, users: Iterable[str] | None = None) -> Artifact:
    """Return the new artifact "recommendations" below `out`.

    `users`: ids, each answered once; by default all that have a stored event. A user of whom
    nothing is known gets popular items. Raises DataError if there is nobody, ConfigError for an
    item field that the release lacks, ReleaseNotFoundError and ChecksumError.
    """
    _check_release(ask)
    settings = {**ask.settings(), "asked_at_s": time.time()}    # histories change: never reused
    write = partial(_write, ask=ask, users=users)
    return artifacts.make(out, "recommendations", settings, [], write)


def _check_release(ask: Ask) -> None:
    """Say what is wrong before actors start."""
    registry = Registry(ask.registry)
    check_release(
        registry, ask.release_id, model_cache=ask.serving.model_cache,
        with_llm=ask.serving.ranking.llm_candidates > 0,
    )
    config = registry.read_config(ask.release_id)
    unknown = sorted(set(ask.filters.fields) - set(config.source.item_fields))
    if unknown:
        raise ConfigError(
            f"no item field {unknown[0]!r}; release {ask.release_id!r} has "
            f"{list(config.source.item_fields)}"
        )


def _write(uri: str, *, ask: Ask, users: Iterable[str] | None) -> dict[str, Any]:
    counts = _write_users(uri, ask, users)
    answered = map_with_actors(
        _Recommender, (ask, uri), [{"part": part} for part in range(len(counts))],
        num_actors=ask.num_actors, num_cpus=1,
        use_gpu=takes_gpu(ask.serving.device),
    )
    modes = Counter(row["mode"] for row in counted(answered, sum(counts), "recommendations"))
    return {"users": sum(counts), "modes": dict(sorted(modes.items()))}


def _write_users(uri: str, ask: Ask, users: Iterable[str] | None) -> list[int]:
    """Write the ids in parts; return how many are in each."""
    database = open_database(ask.serving.database_url)
    try:
        if not has_events(database):
            raise DataError(f"no event is stored in {database.url}: seed or import histories first")
        ids = iter(user_ids(database) if users is None else dict.fromkeys(users))
        counts: list[int] = []
        while chunk := list(islice(ids, ask.users_per_part)):
            table = pa.table({"user_id": pa.array(chunk, pa.string())})
            storage.write_table(storage.join(uri, part_name(USERS, len(counts))), table)
            counts.append(len(chunk))
    finally:
        database.dispose()
    if not counts:
        raise DataError("no user to recommend to: the list is empty")
    return counts


class _Recommender:
    """Actor: holds the release and a connection."""

    def __init__(self, ask: Ask, uri: str) -> None:
        torch.set_num_threads(ask.serving.threads)
        self._ask, self._uri = ask, uri
        self._database = open_database(ask.serving.database_url)
        self._feed = Feed(self._database)
        self._release = load_release(
            Registry(ask.registry), ask.release_id, model_cache=ask.serving.model_cache,
            device=ask.serving.device, with_llm=ask.serving.ranking.llm_candidates > 0,
            retrieval=ask.serving.retrieval,
        )

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Write one part; yield each user's mode."""
        part = int(row["part"])
        ids = storage.read_table(storage.join(self._uri, part_name(USERS, part)))["user_id"]
        rows: list[dict[str, Any]] = []
        size = self._ask.serving.max_batch_size
        for start in range(0, len(ids), size):
            batch = ids[start : start + size].to_pylist()
            rankings = recommend_batch(
                self._feed.current(self._release), self._database, self._ask, batch
            )
            for user_id, ranking in zip(batch, rankings, strict=True):
                rows += _rows(user_id, ranking)
                yield {"mode": str(ranking.mode)}
        table = pa.Table.from_pylist(rows, schema=RECOMMENDATIONS)
        storage.write_table(storage.join(self._uri, part_name(ROWS, part)), table)


def recommend_batch(
    release: LoadedRelease, database: Engine, ask: Ask, users: Sequence[str]
) -> list[Ranking]:
    """Return the rankings of several users, as the endpoint's retriever and scorer make them."""
    return answer(release, [
        find(release, database, Query(ask.k, user_id=user, filters=ask.filters),
             ask.serving.ranking)
        for user in users
    ])


def _rows(user_id: str, ranking: Ranking) -> list[dict[str, Any]]:
    return [
        {
            "user_id": user_id, "rank": place, "item_id": item.item_id, "title": item.title,
            "score": item.score, "crm_score": item.crm_score, "llm_score": item.llm_score,
            "mode": str(ranking.mode),
        }
        for place, item in enumerate(ranking.items, start=1)
    ]
