"""Top-k lists on the test window: the full recommender, its CRM, popularity, item-CF, SASRec.

A query is a test slate of the sample with an item that the user then liked; every model knows the
events strictly before it. Ours learned from [start, T0) (CRM) and [T0, T1) (bank); item-CF and
SASRec learn from all of [start, T1). They try the settings of GRIDS on queries of validation.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.peers.environment import run_script
from benchmarks.quality.grids import search
from benchmarks.quality.training import Bench
from engine import storage
from engine.artifacts import Artifact
from engine.config import RankingConfig, ServingConfig
from engine.metrics import ranking
from engine.metrics.estimates import Estimate, differences
from engine.metrics.ranking import DEPTH, Queries
from engine.releases.registry import Registry
from engine.stages.comparison import as_json
from engine.stages.evaluation import evaluate
from engine.stages.exam import read_examined, set_exam, unseen_period
from engine.stages.release import Parts, publish_release
from engine.stages.release_scores import Sitting, sit_exam
from engine.types import History, IntArray, Window

OURS = ("full", "crm", "popular", "history")
PEERS: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "item-cf": {"K": (20, 100, 500), "liked_only": (False, True)},
    "sasrec": {"steps": (1000, 5000), "liked_only": (False, True)},
}
"""Settings that are tried."""
PAIRS = (("full", "crm"), ("full", "popular"), ("full", "item-cf"), ("full", "sasrec"),
         ("crm", "item-cf"), ("crm", "sasrec"))
CHOSEN_BY = "ndcg@10"


@dataclass(frozen=True, slots=True)
class Asked:
    """Queries of one window: who asks, what they had, what they then liked."""

    users: list[str]
    histories: list[History]
    liked: list[IntArray]


class Lists:
    """The lists of one trained row and of the peers."""

    def __init__(self, bench: Bench, row: str, seed: int, threads: int = 2) -> None:
        self.bench, self.row, self.seed, self.threads = bench, row, seed, threads
        self.ground, self.config = bench.ground, bench.config
        self.exclude_seen = self.config.source.label.kind != "implicit"

    def describe(self) -> dict[str, Any]:
        """Return the JSON: metrics of each list with intervals, and paired differences."""
        ours = self._own_lists()
        asked = self._test_queries
        lists = {name: ours[name] for name in OURS if name != "history" or not self.exclude_seen}
        tuning = {}
        for peer in PEERS:
            lists[peer], tuning[peer] = self._peer_lists(peer)
        measured = {name: self._measure(asked, each) for name, each in lists.items()}
        return {
            "row": "lists", "of": self.row, "seed": self.seed, "num_queries": len(asked.users),
            "num_users": len(set(asked.users)), "tuning": tuning,
            "lists": {
                name: {metric: as_json(each.interval()) for metric, each in values.items()}
                for name, values in measured.items()
            },
            "coverage@10": {
                name: ranking.coverage(self._queries(asked, each), self._num_items)
                for name, each in lists.items()
            },
            "differences": {
                f"{one} - {other}": {
                    metric: as_json(each)
                    for metric, each in differences(measured[one], measured[other]).items()
                }
                for one, other in PAIRS
            },
        }

    # ----- ours

    def release(self) -> str:
        """Publish the row's release; return its id."""
        bench, ground = self.bench, self.ground
        trained = bench.train(self.row, self.seed)
        config, _, states = bench.inputs(self.row, bench.best_rate(self.row))
        evaluation = evaluate(ground.root, config, trained.scores, trained.fusion)
        return publish_release(ground.root, config, Parts(
            ground.histories, ground.item_text, states.crm, trained.bank, ground.popularity,
            trained.fusion, evaluation,
        ))

    @cached_property
    def _answers(self) -> tuple[Artifact, Artifact]:
        """Return exam and release scores."""
        config, out = self.config, self.ground.root
        registry = Registry(config.run.registry)
        examined = read_examined(registry, self.release())
        exam = set_exam(out, self.ground.histories, [examined],
                        unseen_period(self.ground.histories, [examined]),
                        llm_rows=config.evaluation.test_rows)
        serving = ServingConfig(
            model_cache=config.base_model.cache, threads=config.adapters.threads_per_worker,
            device=config.base_model.device,
            ranking=RankingConfig(max_candidates=DEPTH, max_k=DEPTH),
        )
        sitting = Sitting(registry.root, examined.release_id, serving, self.exclude_seen,
                          config.adapters.num_workers)
        return exam, sit_exam(out, exam, self.ground.histories, sitting)

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        _, scores = self._answers
        tables = [storage.read_table(uri) for uri in scores.files("lists/")]
        rows: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist()
        return rows

    def _own_lists(self) -> dict[str, list[Any]]:
        return {name: [row[name] for row in self._rows] for name in OURS}

    @cached_property
    def _test_queries(self) -> Asked:
        exam, _ = self._answers
        tables = [storage.read_table(uri, ["slate_id", "history_length"])
                  for uri in exam.files("slates/")]
        table = pa.concat_tables(tables)
        lengths = dict(zip(table["slate_id"].to_pylist(), table["history_length"].to_pylist(),
                           strict=True))
        return Asked(
            [row["user_id"] for row in self._rows],
            [self._histories[row["user_id"]].head(lengths[row["slate_id"]]) for row in self._rows],
            [np.array(row["liked"]) for row in self._rows],
        )

    @cached_property
    def _histories(self) -> dict[str, History]:
        inputs = self.ground.inputs()
        found: dict[str, History] = {}
        for partition in inputs.partitions():
            found |= inputs.histories_at(partition)
        return found

    # ----- peers

    @cached_property
    def _validation_queries(self) -> Asked:
        """Return the queries of all users' validation slates."""
        inputs = self.ground.inputs()
        users: list[str] = []
        histories: list[History] = []
        liked: list[IntArray] = []
        for partition in inputs.partitions():
            for user_id, user in inputs.slates_at(partition, (Window.VALIDATION,)).items():
                for items, labels, length in zip(
                    user.items, user.labels, user.history_lengths, strict=True
                ):
                    past = self._histories[user_id].head(length)
                    wanted = np.array([i for i, y in zip(items, labels, strict=True) if y])
                    if self.exclude_seen:
                        wanted = np.setdiff1d(wanted, past.items)
                    if len(wanted):
                        users.append(user_id)
                        histories.append(past)
                        liked.append(wanted)
        return Asked(users, histories, liked)

    def _peer_lists(self, name: str) -> tuple[list[Any], list[dict[str, Any]]]:
        """Return the test lists of the settings that are best on validation, and all tried."""
        found = search(PEERS[name], CHOSEN_BY, lambda settings: self._measure(
            self._validation_queries, self._ask(name, settings, Window.VALIDATION)
        )[CHOSEN_BY].value)
        return self._ask(name, found.best, Window.TEST), found.to_json()

    def _ask(self, name: str, settings: Mapping[str, Any], window: Window) -> list[Any]:
        """Return the lists of one training; it runs if its file is not there."""
        folder = self._export(window)
        arguments = json.dumps(settings, sort_keys=True)
        key = storage.sha256(f"{folder.name} {arguments} {self.seed}".encode())[:12]
        path = folder / f"{name}-{key}.parquet"
        run_script("rectools", "rectools_lists.py", path, [
            "--data", str(folder), "--model", name, "--settings", arguments,
            "--k", str(DEPTH), "--seed", str(self.seed), "--threads", str(self.threads),
            *(["--exclude-seen"] * self.exclude_seen),
        ], threads=self.threads)
        found: list[Any] = storage.read_table(str(path))["items"].to_pylist()
        return found

    def _export(self, window: Window) -> Path:
        """Write the events before T1 and one window's queries; return the folder."""
        is_test = window is Window.TEST
        asked = self._test_queries if is_test else self._validation_queries
        slates = self.ground.slates.key
        source = self._answers[1].key if is_test else f"{slates} {self.exclude_seen}"
        key = storage.sha256(source.encode())[:12]
        folder = Path(self.ground.root) / "peers" / f"{window.name.lower()}-{key}"
        if not (folder / "queries.parquet").exists():
            cut_s = self.ground.inputs().timeline().t1_s
            before = {user: each.before(cut_s) for user, each in self._histories.items()}
            columns = {
                "item": [each.items for each in before.values()],
                "timestamp_s": [each.timestamps_s for each in before.values()],
                "label": [each.labels for each in before.values()],
            }
            storage.write_table(str(folder / "events.parquet"), pa.table({
                "user": np.repeat(list(before), [len(each) for each in before.values()]),
                **{name: np.concatenate(parts) for name, parts in columns.items()},
            }))
            storage.write_table(str(folder / "queries.parquet"), pa.table({
                "query": np.arange(len(asked.users)),
                "history": [each.items for each in asked.histories],
                "labels": [each.labels for each in asked.histories],
            }))
        return folder

    # ----- metrics

    @cached_property
    def _events_I(self) -> IntArray:
        return self.ground.training_events()

    @property
    def _num_items(self) -> int:
        return len(self._events_I) - 1

    def _queries(self, asked: Asked, lists: Sequence[Any]) -> Queries:
        return Queries.of(
            np.array(asked.users), [np.array(each, np.int64) for each in lists], asked.liked
        )

    def _measure(self, asked: Asked, lists: Sequence[Any]) -> dict[str, Estimate]:
        config = self.config
        return ranking.measure(
            self._queries(asked, lists), self._events_I,
            num_draws=config.evaluation.bootstrap_draws, seed=config.run.seed,
        )
