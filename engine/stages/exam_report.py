"""Releases' answers to one exam -> tables, slices, rankings and paired differences ("exam_report").

    report.json   see `examine`
    index.html    the same with figures; needs no other file, no network and no script

Every figure has a 95% interval over users; of two releases, rows and draws are the same, so the
difference is paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.errors import ArtifactError, EmptyExamError
from engine.metrics import ranking
from engine.metrics.estimates import Estimate, differences
from engine.metrics.ranking import Queries
from engine.models.fusion import Fusion
from engine.releases.registry import Registry
from engine.stages.adapters import read_learning
from engine.stages.comparison import (
    HISTORY_LENGTHS,
    KINDS,
    Measured,
    as_json,
    counts_of,
    describe_gates,
    measure_models,
    model_logits,
    reliability_of,
    table_of,
)
from engine.stages.exam import ITEMS_FILE
from engine.stages.exam_page import render
from engine.stages.score_rows import ScoreRows, keep_users, rows_of
from engine.stages.slate_gates import read_gates
from engine.types import IntArray

REPORT_FILE, PAGE_FILE = "report.json", "index.html"
ACTIVE_S = 28 * 86_400
"""A user is active who had an event in the four weeks before the slate."""
NEWEST_DAY, EARLIER_DAYS = "the newest day", "the days before it"
LISTS = ("full", "crm", "popular", "history")
LIST_DIFFERENCES = (("full", "crm"), ("full", "popular"), ("crm", "popular"), ("full", "history"))
_COLUMNS = ("popularity", "crm_row_logit", "crm_logit", "llm_logit")
_KEYS = ("slate_id", "item", "label")


@dataclass(frozen=True, slots=True)
class Answers:
    """What one release answered."""

    release_id: str
    scores: Artifact
    fusion: Fusion
    size_bytes: int
    """Of the release's files."""
    learning: Sequence[Mapping[str, float]] = ()
    """AUC against training samples, see stages/adapters."""

    @classmethod
    def read(cls, registry: Registry, release_id: str, scores: Artifact) -> "Answers":
        """Add what the release's folder says of it."""
        folder = registry.folder(release_id)
        fusion = Fusion.from_json(storage.read_json(storage.join(folder, "fusion.json")))
        return cls(
            release_id, scores, fusion, registry.read_manifest(release_id).size_bytes,
            read_learning(storage.join(folder, "bank")),
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """How the report is measured."""

    num_draws: int
    seed: int
    max_rows: int
    """Rows (of whole users) on which CRM and popularity are measured."""


def report_exam(
    out: str, exam: Artifact, answers: Sequence[Answers], settings: Settings
) -> Artifact:
    """Return the artifact "exam_report" of one release, or of two: the first minus the second."""
    def write(folder: str) -> dict[str, Any]:
        report = examine(exam, answers, settings)
        storage.write_json(storage.join(folder, REPORT_FILE), report)
        storage.write_bytes(storage.join(folder, PAGE_FILE), render(report).encode())
        return {"releases": [each.release_id for each in answers]}

    values = {
        "draws": settings.num_draws, "seed": settings.seed, "max_rows": settings.max_rows,
        "releases": [[each.release_id, each.scores.key] for each in answers],
    }
    return artifacts.make(out, "exam_report", values, [exam], write, version=2)


def examine(
    exam: Artifact, answers: Sequence[Answers], settings: Settings
) -> dict[str, Any]:
    """Return JSON: exam, settings, releases [tables, rankings, reliability, learning, gates,
    cost], difference.

    A table stands for each slice of "all" rows (popularity and CRM) and of the "sample" (the
    language model, too; only slates that all releases could read); a ranking for all liked items
    and, where feedback is implicit, for "repeat" and "new" ones apart, and for each slice of users.
    """
    samples = [read_sampled(each.scores) for each in answers]
    read = set.intersection(*(set(table["slate_id"].to_pylist()) for table in samples))
    if not read:
        raise EmptyExamError(
            "no slate of the sample was read by the language models of all releases"
        )
    found = [
        _Measurement(each, exam, settings, table.filter(pc.field("slate_id").isin(sorted(read))))
        for each, table in zip(answers, samples, strict=True)
    ]
    for other in found[1:]:
        found[0].check_same_questions(other)
    manifest = exam.manifest()
    return {
        "exam": {**exam.facts, **manifest["settings"], "key": exam.key, **manifest["inputs"]},
        "settings": {"draws": settings.num_draws, "seed": settings.seed,
                     "max_rows": settings.max_rows},
        "releases": [each.to_json() for each in found],
        "difference": found[0].minus(found[1]) if len(found) > 1 else None,
    }


class _Measurement:
    """All estimates of one release."""

    def __init__(
        self, answers: Answers, exam: Artifact, settings: Settings, sample: pa.Table
    ) -> None:
        """`sample`: the rows on which the language model is measured."""
        self.answers = answers
        everything = read_rows(answers.scores, settings.max_rows)
        newest_s = exam.manifest()["settings"].get("newest_s")
        self.keys = {"all": everything.select(_KEYS), "sample": sample.select(_KEYS)}
        self.groups: dict[tuple[str, str], ScoreRows] = {}
        for rows, table in (("all", everything), ("sample", sample)):
            whole = rows_of(table, _COLUMNS, _total(answers.scores, rows, table))
            for name, mask in slices_of(table, newest_s).items():
                if mask.any():
                    self.groups[rows, name] = whole if mask.all() else whole.where(mask)
        self.measured: dict[tuple[str, str], Measured] = {
            key: measure_models(
                group, answers.fusion, num_draws=settings.num_draws, seed=settings.seed
            )
            for key, group in self.groups.items()
        }
        self.lists = read_lists(answers.scores)
        self.queries = queries_of(self.lists)
        events_I = storage.read_tensors(exam.path(ITEMS_FILE))["events"]
        self.num_items = len(events_I) - 1
        self.ranked: dict[tuple[str, str, str], Mapping[str, Estimate]] = {
            key: ranking.measure(
                queries, events_I, num_draws=settings.num_draws, seed=settings.seed
            )
            for key, queries in self.queries.items()
        }

    def check_same_questions(self, other: "_Measurement") -> None:
        """Raise ArtifactError unless both answered the same rows and lists."""
        same_lists = self.lists.select(["slate_id", "liked"]).equals(
            other.lists.select(["slate_id", "liked"])
        )
        if self.keys != other.keys or not same_lists:
            raise ArtifactError(
                f"releases {self.answers.release_id!r} and {other.answers.release_id!r} did not "
                "answer the same rows"
            )

    def to_json(self) -> dict[str, Any]:
        """Return one release's part of the report."""
        sample = self.groups["sample", "all"]
        logits = model_logits(sample, self.answers.fusion)
        return {
            "release_id": self.answers.release_id, "scores": self.answers.scores.key,
            "modes": self.answers.scores.facts["modes"],
            "unread_slates": self.answers.scores.facts["unread_slates"],
            "cost": {
                "size_bytes": self.answers.size_bytes, "cpu_s": self.answers.scores.facts["cpu_s"],
            },
            "tables": [
                {"rows": rows, "slice": name,
                 **table_of(self.groups[rows, name], measured)}
                for (rows, name), measured in self.measured.items()
            ],
            "rankings": [
                self._ranking(*group) for group in dict.fromkeys(key[:2] for key in self.ranked)
            ],
            "reliability": reliability_of(sample, logits),
            "learning": list(self.answers.learning),
            **_gates(self.answers.scores),
        }

    def _ranking(self, kind: str, part: str) -> dict[str, Any]:
        own = {key[2]: each for key, each in self.ranked.items() if key[:2] == (kind, part)}
        any_queries = self.queries[kind, part, "full"]
        return {
            "kind": kind, "slice": part,
            "num_queries": len(any_queries), "num_users": any_queries.num_users,
            "num_liked": int(any_queries.relevant_Q.sum()),
            "lists": {
                name: {
                    **{metric: as_json(value.interval()) for metric, value in each.items()},
                    "coverage@10": {"value": ranking.coverage(
                        self.queries[kind, part, name], self.num_items
                    )},
                }
                for name, each in own.items()
            },
            "differences": {
                f"{one} - {two}": {
                    metric: as_json(each)
                    for metric, each in differences(own[one], own[two]).items()
                }
                for one, two in LIST_DIFFERENCES if one in own and two in own
            },
        }

    def minus(self, other: "_Measurement") -> dict[str, Any]:
        """Return the paired intervals of this release minus another, table by table."""
        return {
            "first": self.answers.release_id, "second": other.answers.release_id,
            "tables": [
                {
                    "rows": rows, "slice": name, **counts_of(self.groups[rows, name]),
                    "models": _paired(measured, other.measured[rows, name]),
                }
                for (rows, name), measured in self.measured.items()
            ],
            "rankings": [
                {"kind": kind, "slice": part, "list": name, "metrics": {
                    metric: as_json(each)
                    for metric, each in differences(own, other.ranked[kind, part, name]).items()
                }}
                for (kind, part, name), own in self.ranked.items()
                if (kind, part, name) in other.ranked       # a release may have no such list
            ],
        }


def _paired(one: Measured, other: Measured) -> dict[str, Any]:
    return {
        model: {
            metric: as_json(each)
            for metric, each in differences(values, other[model]).items()
        }
        for model, values in one.items() if model in other
    }


# ----- rows


def read_rows(scores: Artifact, max_rows: int) -> pa.Table:
    """Return the scores of all rows; above the limit, of whole users by a stable hash."""
    share = min(1.0, max_rows / max(1, scores.facts["rows"]))
    return pa.concat_tables(
        keep_users(storage.read_table(uri), share) for uri in scores.files("scores/")
    )


def read_sampled(scores: Artifact) -> pa.Table:
    """Return the rows that the language model scored."""
    return pa.concat_tables(
        table.filter(pc.is_valid(table["llm_logit"]))
        for table in map(storage.read_table, scores.files("scores/"))
    )


def _total(scores: Artifact, rows: str, table: pa.Table) -> int:
    return int(scores.facts["rows"] if rows == "all" else table.num_rows)


def slices_of(
    table: pa.Table, newest_s: int | None = None
) -> dict[str, npt.NDArray[np.bool_]]:
    """Return the rows of each slice [N]; a user is new, an item cold, that training did not have.
    newest_s: where the newest day begins.
    """
    newest = {}
    if newest_s is not None:
        is_new = table["timestamp_s"].to_numpy() >= newest_s
        newest = {NEWEST_DAY: is_new, EARLIER_DAYS: ~is_new}
    kinds, cold = table["kind"].to_numpy(), table["item_events"].to_numpy() == 0
    return {
        "all": np.ones(len(table), bool), **user_slices_of(table),
        "cold items": cold, "warm items": ~cold,
        **{f"{name} items of the user": kinds == kind for name, kind in KINDS.items()}, **newest,
    }


def user_slices_of(table: pa.Table) -> dict[str, npt.NDArray[np.bool_]]:
    """Return the rows [N] of each slice that is the same for all rows of a slate."""
    lengths, new = table["history_length"].to_numpy(), table["user_events"].to_numpy() == 0
    idle_s = table["idle_s"].fill_null(np.iinfo(np.int64).max).to_numpy()
    has_history = lengths > 0
    return {
        "new users": new, "old users": ~new,
        **{
            f"history {name}": (lengths >= low) & (lengths < high)
            for name, (low, high) in HISTORY_LENGTHS.items()
        },
        "active users": has_history & (idle_s <= ACTIVE_S),
        "inactive users": has_history & (idle_s > ACTIVE_S),
    }


def _gates(scores: Artifact) -> dict[str, Any]:
    """Return the gates' statistics, one entry for each user: the first slate of the sample."""
    found = read_gates(scores)
    if found is None:
        return describe_gates(None)
    firsts = np.unique(found.user_ids, return_index=True)[1]
    return describe_gates(found.gates_SGK[firsts])


# ----- lists


def read_lists(scores: Artifact) -> pa.Table:
    """Return the ranked lists of the sample."""
    return pa.concat_tables(map(storage.read_table, scores.files("lists/")))


def queries_of(lists: pa.Table) -> dict[tuple[str, str, str], Queries]:
    """Return the queries by kind of liked item, slice of users and name of the list, where there
    are any: each kind for all users, and each slice for all liked items.
    """
    found: dict[tuple[str, str, str], Queries] = {}
    users = np.array(lists["user_id"].to_pylist())
    ranked_of = {
        name: [np.array(each, np.int64) for each in lists[name].to_pylist()] for name in LISTS
    }
    for group, (part, wanted) in _groups(lists).items():
        places = [place for place, items in enumerate(wanted) if part[place] and len(items)]
        for name, of_all in ranked_of.items():
            ranked = _take(of_all, places)
            if any(len(each) for each in ranked):
                found[*group, name] = Queries.of(users[places], ranked, _take(wanted, places))
    return found


def _groups(
    lists: pa.Table
) -> dict[tuple[str, str], tuple[npt.NDArray[np.bool_], list[IntArray]]]:
    """Return the lists [Q] and their liked items by kind and slice."""
    liked = [np.array(each) for each in lists["liked"].to_pylist()]
    kinds = [np.array(each) for each in lists["kinds"].to_pylist()]
    everybody = np.ones(len(liked), bool)
    of_kind = {
        name: [items[of == kind] for items, of in zip(liked, kinds, strict=True)]
        for name, kind in KINDS.items()
    }
    return {
        ("all", "all"): (everybody, liked),
        **{(name, "all"): (everybody, wanted) for name, wanted in of_kind.items()},
        **{("all", name): (part, liked) for name, part in user_slices_of(lists).items()},
    }


def _take(values: Sequence[IntArray], places: Sequence[int]) -> list[IntArray]:
    return [values[place] for place in places]
