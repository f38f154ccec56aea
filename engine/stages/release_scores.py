"""A release and an exam -> what the release answers (kind "release_scores").

    scores/part-*.parquet     schema.EXAM_SCORES: every row; language model on the sample
    lists/part-*.parquet      schema.RANKED_LISTS: the sample's slates in which something was liked
    gates.safetensors         "gates" [slates, G, N]: user mixes of the sample, by slate id
    slates.json               their slate and user ids

Actors hold the release and answer as the endpoint does: the history before the slate, candidates
by the retrieval head, the CRM's order, the best M re-ranked by the language model. Cost: the CRM
on every row, the language model on the sample's rows and on M candidates for each of its lists.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.config import ServingConfig
from engine.data.layers import read_histories
from engine.data.schema import EXAM_SCORES, RANKED_LISTS, histories_of, part_name
from engine.errors import EmptyExamError, PromptError
from engine.metrics.ranking import DEPTH
from engine.models.base import worker_dtype
from engine.models.crm_examples import UserSlates, score_slates
from engine.recommender.candidates import Filters, popular_items
from engine.recommender.language import Reading, read_prompts, score_readings
from engine.recommender.loading import load_release
from engine.recommender.lookup import Query, answer, choose, history_limit
from engine.recommender.ranking import Ranking, StageClock, best_first
from engine.recommender.release import LoadedRelease
from engine.releases.registry import Registry
from engine.stages.exam import SAMPLE_FILE
from engine.stages.partitions import map_with_actors, takes_gpu
from engine.stages.progress import counted
from engine.stages.slate_gates import SlateGates
from engine.types import AnswerMode, FloatArray, History, IntArray, Window

log = logging.getLogger(__name__)

TOTALS = ("rows", "lists", "unread_slates", "cpu_s")
"""Facts that are sums over users. cpu_s: of the CPUs, while the language model read the sample's
slates and their lists were ranked: what answers at the endpoint cost, too."""


@dataclass(frozen=True, slots=True)
class Sitting:
    """Who sits the exam, and how it may answer."""

    registry: str
    release_id: str
    serving: ServingConfig
    """As the endpoint's: base model, ranking, batch size, threads and device."""
    exclude_seen: bool
    """Whether lists leave out the items of the history."""
    num_actors: int = 1

    def settings(self) -> dict[str, Any]:
        """Return what the answers depend on."""
        device = self.serving.device
        base = Registry(self.registry).read_config(self.release_id).base_model
        return {
            "release_id": self.release_id, "ranking": self.serving.ranking.settings(),
            "exclude_seen": self.exclude_seen,
            "dtype": worker_dtype(
                base.model_copy(update={"device": device}), use_gpu=takes_gpu(device)
            ),
        }


def sit_exam(out: str, exam: Artifact, histories: Artifact, sitting: Sitting) -> Artifact:
    """Return the artifact "release_scores" of one release."""
    write = partial(_write, exam=exam, histories=histories, sitting=sitting)
    return artifacts.make(out, "release_scores", sitting.settings(), [exam], write, version=3)


def _write(
    uri: str, *, exam: Artifact, histories: Artifact, sitting: Sitting
) -> Mapping[str, Any]:
    parts = range(len(exam.files("slates/")))
    answered = map_with_actors(
        _Examinee, (sitting, exam, histories, uri), [{"part": part} for part in parts],
        num_actors=sitting.num_actors, num_cpus=1,
        use_gpu=takes_gpu(sitting.serving.device),
    )
    totals, modes = Counter[str](), Counter[str]()
    slates: dict[str, Sequence[Mapping[str, Any]]] = {}
    name = f"release_scores of {sitting.release_id}"
    for user in counted(answered, exam.facts["users"], name):
        totals.update({name: user[name] for name in TOTALS})
        modes.update(user["modes"])
        if user["slates"]:
            slates[user["user_id"]] = user["slates"]
    if not slates:
        raise EmptyExamError(
            f"release {sitting.release_id!r}: no prompt fits in prompt.max_tokens in any of the "
            f"{totals['unread_slates']} slates of the sample: there is nothing to measure"
        )
    _write_gates(uri, [slate for user_id in sorted(slates) for slate in slates[user_id]])
    return {
        **{name: totals[name] for name in TOTALS}, "modes": dict(modes),
    }


def _write_gates(uri: str, slates: Sequence[Mapping[str, Any]]) -> None:
    gates = [np.frombuffer(each["gates"], np.float32).reshape(each["shape"]) for each in slates]
    SlateGates(
        np.stack(gates), [each["slate_id"] for each in slates],
        [each["user_id"] for each in slates],
    ).write(uri)


@dataclass(frozen=True, slots=True)
class Translation:
    """Items of the histories' catalogue in the terms of a release's, and back."""

    to_release_I: IntArray
    """0 for an item that the release does not know."""
    to_histories_J: IntArray

    @staticmethod
    def of(item_ids: Sequence[str], release: LoadedRelease) -> "Translation":
        """Match by item id; both catalogues start with the unknown item."""
        catalogue = release.catalogue
        to_release_I = np.array([0, *(
            catalogue.index_of(item_id) if item_id in catalogue else 0 for item_id in item_ids[1:]
        )])
        to_histories_J = np.zeros(len(catalogue), np.int32)
        to_histories_J[to_release_I] = np.arange(len(item_ids))
        to_histories_J[0] = 0
        return Translation(to_release_I.astype(np.int32), to_histories_J)

    def history(self, history: History) -> tuple[History, IntArray]:
        """Return a history without unknown items, and the new length for each old one."""
        items = self.to_release_I[history.items]
        known = items > 0
        translated = History(
            items[known], history.ratings[known], history.labels[known],
            history.timestamps_s[known],
        )
        return translated, np.concatenate([[0], np.cumsum(known)])


@dataclass(frozen=True, slots=True)
class _Question:
    """One slate in the terms of the release."""

    row: Mapping[str, Any]
    """schema.EXAM_SLATES, in the terms of the histories."""
    history: History
    """Strictly before the slate, of items that the release knows."""
    past: IntArray
    """Items of all events strictly before the slate, in the terms of the histories."""
    items: IntArray
    row_history_lengths: IntArray
    """Events, of those that the release knows, strictly before each row."""

    @property
    def slate_id(self) -> str:
        """Return the slate's id."""
        return str(self.row["slate_id"])


class _Examinee:
    """Actor: holds the release."""

    def __init__(
        self, sitting: Sitting, exam: Artifact, histories: Artifact, uri: str
    ) -> None:
        serving = sitting.serving
        torch.set_num_threads(serving.threads)
        self._sitting, self._exam, self._histories, self._uri = sitting, exam, histories, uri
        self._sample = frozenset(storage.read_json(exam.path(SAMPLE_FILE))["users"])
        self._release = load_release(
            Registry(sitting.registry), sitting.release_id, model_cache=serving.model_cache,
            device=serving.device,
        )
        item_ids = storage.read_table(histories.path("items.parquet"), ["item_id"])["item_id"]
        self._terms = Translation.of(["", *item_ids.to_pylist()], self._release)

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Write one part; yield what the driver needs of each user."""
        part = int(row["part"])
        scores: list[dict[str, Any]] = []
        lists: list[dict[str, Any]] = []
        for user_id, history, questions in self._users(part):
            cpu_s = 0.0
            asked = [each for each in questions if len(each.items)]
            crm = self._score_crm(user_id, history, asked) if asked else []
            llm: Sequence[FloatArray | None] = [None] * len(asked)
            gates: list[dict[str, Any]] = []
            ranked: list[dict[str, Any]] = []
            modes: list[str] = []
            if user_id in self._sample:
                start_s = time.process_time()
                llm, gates = self._read(asked)
                ranked, modes = self._rank(questions)
                cpu_s = time.process_time() - start_s
            for question, crm_row, logits in zip(asked, crm, llm, strict=True):
                scores += self._rows(question, crm_row, logits)
            lists += ranked
            yield {
                "user_id": user_id, "rows": sum(len(each.items) for each in asked),
                "lists": len(ranked), "modes": modes, "slates": gates,
                "unread_slates": len(asked) - len(gates) if user_id in self._sample else 0,
                "cpu_s": cpu_s,
            }
        for name, rows, schema in (("scores", scores, EXAM_SCORES), ("lists", lists, RANKED_LISTS)):
            table = pa.Table.from_pylist(rows, schema=schema)
            storage.write_table(storage.join(self._uri, part_name(name, part)), table)

    def _users(self, part: int) -> Iterator[tuple[str, History, list[_Question]]]:
        """Yield each user's history and questions."""
        slates = storage.read_table(self._exam.path(part_name("slates", part))).to_pylist()
        users = pa.array(sorted({slate["user_id"] for slate in slates}), pa.string())
        histories = histories_of(read_histories(self._histories.uri, part, users))
        for user_id, rows in groupby(slates, key=lambda slate: str(slate["user_id"])):
            whole = histories[user_id]
            history, lengths = self._terms.history(whole)
            yield user_id, history, [
                _Question(
                    slate, history.head(int(lengths[slate["history_length"]])),
                    whole.items[: slate["history_length"]],
                    self._terms.to_release_I[slate["items"]], lengths[slate["row_history_lengths"]],
                )
                for slate in rows
            ]

    def _score_crm(
        self, user_id: str, history: History, questions: Sequence[_Question]
    ) -> list[dict[str, Any]]:
        """Return the CRM's logits of each slate, with the history before it and before each row."""
        slates = UserSlates(
            [each.slate_id for each in questions], [int(Window.TEST)] * len(questions),
            [each.items.tolist() for each in questions],
            [each.row["labels"] for each in questions],
            [len(each.history) for each in questions],
            [each.row_history_lengths.tolist() for each in questions],
        )
        scored: list[dict[str, Any]] = score_slates(
            self._release.crm, {user_id: history}, self._release.profiles, {user_id: slates}
        ).to_pylist()
        return scored

    def _read(
        self, questions: Sequence[_Question]
    ) -> tuple[list[FloatArray | None], list[dict[str, Any]]]:
        """Return the language model's logits of each slate, and its first gates; None and no gates
        where there is no prompt that fits: the endpoint answers by the CRM there.
        """
        release = self._release
        assert release.language is not None
        readings: list[Reading | None] = []
        for each in questions:
            profile = release.profiles.of(each.row["user_id"])
            history = each.history.tail(release.max_history)
            [output] = release.crm.score([history], [profile], [each.items])
            try:
                readings.append(read_prompts(
                    release.language, history, profile, each.items, output,
                    np.arange(len(each.items)),
                ))
            except PromptError as error:
                log.warning("slate %r: %s", each.slate_id, error)
                readings.append(None)
        gates = [
            _gates_row(question, reading.gates[0][0])
            for question, reading in zip(questions, readings, strict=True) if reading is not None
        ]
        scored = score_readings(release, readings)
        return [None if reading is None else logits_M
                for reading, logits_M in zip(readings, scored, strict=True)], gates

    def _rows(
        self, question: _Question, crm: Mapping[str, Any], llm_M: FloatArray | None
    ) -> list[dict[str, Any]]:
        slate = question.row
        popularity_M = self._release.popularity.scores[question.items]
        same = {name: slate[name] for name in (
            "user_id", "slate_id", "history_length", "user_events", "idle_s",
        )}
        return [
            {
                **same, "item": item, "label": slate["labels"][slot], "kind": slate["kinds"][slot],
                "item_events": slate["item_events"][slot],
                "timestamp_s": slate["timestamps_s"][slot],
                "popularity": float(popularity_M[slot]), "crm_logit": crm["logits"][slot],
                "crm_row_logit": crm["row_logits"][slot],
                "llm_logit": None if llm_M is None else float(llm_M[slot]),
            }
            for slot, item in enumerate(slate["items"])
        ]

    def _rank(self, questions: Sequence[_Question]) -> tuple[list[dict[str, Any]], list[str]]:
        """Return the ranked lists of the slates with a liked item, and how each was answered."""
        asked = [(each, liked) for each in questions if (liked := self._liked(each))]
        lists, modes = [], []
        size = self._sitting.serving.max_batch_size
        for start in range(0, len(asked), size):
            batch = asked[start : start + size]
            rankings = self._answer([question for question, _ in batch])
            for (question, liked), ranking in zip(batch, rankings, strict=True):
                lists.append(self._list(question, liked, ranking))
                modes.append(str(ranking.mode))
        return lists, modes

    def _liked(self, question: _Question) -> dict[int, int]:
        """Return the liked items, in the histories' terms, and their kind: also those that this
        or another release does not know, but none that a list must leave out as seen.
        """
        slate = question.row
        seen = set(question.past.tolist()) if self._sitting.exclude_seen else set()
        known = zip(slate["items"], slate["labels"], slate["kinds"], strict=True)
        liked = {item: kind for item, label, kind in known if label == 1}
        liked |= zip(slate["unknown_liked"], slate["unknown_kinds"], strict=True)
        return {item: kind for item, kind in liked.items() if item not in seen}

    def _answer(self, questions: Sequence[_Question]) -> list[Ranking]:
        """Return the endpoint's rankings."""
        settings = self._sitting.serving.ranking
        limit = history_limit(self._release, settings)
        return answer(self._release, [
            choose(
                self._release, each.history.tail(limit),
                self._release.profiles.of(each.row["user_id"]),
                Query(DEPTH, user_id=each.row["user_id"], filters=self._filters(each)), settings,
                StageClock(),
            )
            for each in questions
        ])

    def _filters(self, question: _Question) -> Filters:
        """Return what the endpoint leaves out: all seen items, those older than it reads, too."""
        if not self._sitting.exclude_seen:
            return Filters()
        ids = self._release.catalogue.item_ids
        seen = np.unique(question.history.items)
        return Filters(exclude_seen=True).without([ids[item] for item in seen])

    def _list(
        self, question: _Question, liked: Mapping[int, int], ranking: Ranking
    ) -> dict[str, Any]:
        release, exclude_seen = self._release, self._sitting.exclude_seen
        filters = Filters(exclude_seen=exclude_seen)
        popular = popular_items(release, question.history, filters, DEPTH)
        full = np.array([release.catalogue.index_of(item.item_id) for item in ranking.items])
        crm = full
        if ranking.mode is not AnswerMode.POPULAR:
            crm = full[best_first(np.array([item.crm_score for item in ranking.items]), full)]
        history = np.zeros(0, np.int32) if exclude_seen else most_often(question.history)
        return {
            **{name: question.row[name] for name in (
                "user_id", "slate_id", "history_length", "user_events", "idle_s",
            )},
            "liked": list(liked), "kinds": list(liked.values()),
            **{name: self._terms.to_histories_J[items].tolist() for name, items in (
                ("full", full), ("crm", crm), ("popular", popular), ("history", history),
            )},
        }


def _gates_row(question: _Question, gates_GN: FloatArray) -> dict[str, Any]:
    return {
        "slate_id": question.slate_id, "user_id": question.row["user_id"],
        "gates": gates_GN.astype(np.float32).tobytes(), "shape": list(gates_GN.shape),
    }


def most_often(history: History, limit: int = DEPTH) -> IntArray:
    """Return the items of a history, most events first; ties: the most recent first."""
    items, first_from_end, counts = np.unique(
        history.items[::-1], return_index=True, return_counts=True
    )
    return items[np.lexsort((first_from_end, -counts))][:limit]
