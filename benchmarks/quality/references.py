"""Rows without training of a language model, on every test row: popularity, CRM, DIN and SIM.

Two views of the same rows. By row, the history is what stands strictly before each row, as in the
literature; peers read the rows, the features and the history that our CRM reads (ctr_rows.py), try
the settings of GRIDS, and validation chooses. By request, it is what stands before the slate, as
when a request ranks it: only there candidates of one slate are compared.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.environment import run_script
from benchmarks.quality.comparison import mean_of_seeds
from benchmarks.quality.ctr_rows import CTRRows, export_rows
from benchmarks.quality.grids import Search, search
from benchmarks.quality.ground import Ground, States
from benchmarks.quality.item_text import WINDOWS, TextRows, fit, read_text_rows
from engine import storage
from engine.data.schema import part_name
from engine.metrics import ctr
from engine.metrics.ctr import Rows
from engine.metrics.estimates import Estimate, differences
from engine.models.popularity import FILE as POPULARITY
from engine.models.popularity import Popularity
from engine.stages.comparison import as_json
from engine.stages.crm import make_examples
from engine.types import FloatArray, IntArray, Window

TITLES = {
    "popularity": "popularity", "crm": "our CRM, out of time",
    "crm-text": "our CRM, out of time, and a small model of item texts",
    "crm-whole": "our CRM, whole training window", "din": "FuxiCTR DIN", "sim": "FuxiCTR SIM",
}
WHOLE = Window.CRM, Window.BANK
PEERS: Mapping[str, Mapping[str, Any]] = {
    "din": {"model": "DIN", "history": 60},
    "sim": {"model": "SIM", "history": 1000, "topk": 60, "short_seq_len": 50},
}
GRIDS = {"learning_rate": (1e-3, 3e-3), "embedding_regularizer": (1e-6, 1e-5, 1e-4)}
"""What is tried with the first seed; the epoch (of 5) is chosen by early stopping."""
FIXED = {"embedding_dim": 16, "batch_size": 512, "net_dropout": 0.2,
         "dnn_hidden_units": [256, 128]}
"""As our CRM's."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's logits of the test rows, and its cost."""

    cost: Mapping[str, Any]
    by_row_N: FloatArray | None = None
    """Each row with the history strictly before it."""
    by_request_N: FloatArray | None = None
    """Each row with the history before its slate."""


class References:
    """The rows of plan.REFERENCES of one data set."""

    def __init__(self, ground: Ground, seeds: Sequence[int], threads: int = 2) -> None:
        self.ground, self.seeds, self.threads = ground, seeds, threads
        self._found: dict[tuple[str, str], dict[str, Estimate]] = {}
        self._searches: dict[str, Search] = {}

    def describe(self, name: str) -> dict[str, Any]:
        """Return the JSON of a row: metrics, each averaged over seeds, and what was tried."""
        answers = self.answers(name)
        return {
            "row": name, "title": TITLES[name], "seeds": len(answers),
            "num_rows": len(self.rows), "num_users": self.rows.num_users,
            **self._by_row(answers), **self._by_request(answers),
            "cost": dict(answers[0].cost),
            "tuning": self._search(name).to_json() if name in PEERS else [],
        }

    def answers(self, name: str) -> list[Answer]:
        """Return the answers of every seed."""
        if name == "popularity":
            logits_N = self._popularity()
            return [Answer({}, logits_N, logits_N)]
        if name in PEERS:
            best = self._search(name).best
            return [self._peer(name, best, seed)["test"] for seed in self.seeds]
        if name == "crm-text":
            return [self._with_text(seed) for seed in self.seeds]
        return [self._crm(seed, whole=name == "crm-whole") for seed in self.seeds]

    def _by_row(self, answers: Sequence[Answer]) -> dict[str, Any]:
        logits = [each.by_row_N for each in answers if each.by_row_N is not None]
        if not logits:
            return {}
        measured = self._measure("by_row_N", logits)
        whole = self._measured("crm-whole", "by_row_N")
        return {
            "by_row": _as_json(measured),
            "by_row, crm-whole - this": _gained(whole, measured),
            "auc_of_seeds": [ctr.auc(self.rows.labels_N, each) for each in logits],
        }

    def _by_request(self, answers: Sequence[Answer]) -> dict[str, Any]:
        logits = [each.by_request_N for each in answers if each.by_request_N is not None]
        if not logits:
            return {}
        measured = self._measure("by_request_N", logits)
        crm = self._measured("crm", "by_request_N")
        return {
            "by_request": _as_json(measured), "by_request, this - crm": _gained(measured, crm),
        }

    def _measured(self, name: str, view: str) -> dict[str, Estimate]:
        """Return the metrics of one of our rows, seeds averaged; measured once."""
        if (name, view) not in self._found:
            logits = [getattr(each, view) for each in self.answers(name)]
            self._found[name, view] = self._measure(view, logits)
        return self._found[name, view]

    def _measure(self, view: str, logits: Sequence[FloatArray]) -> dict[str, Estimate]:
        """Return each metric's mean over the seeds; by row, candidates of a slate have different
        histories, so there no AUC within a slate is defined."""
        config, rows = self.ground.config, self.rows
        if view == "by_row_N":
            rows = Rows(rows.users_N, rows.labels_N, rows.num_users)
        return mean_of_seeds([
            ctr.measure(rows, logits_N, num_draws=config.evaluation.bootstrap_draws,
                        seed=config.run.seed)
            for logits_N in logits
        ])

    # ----- ours

    @cached_property
    def rows(self) -> Rows:
        """Return users, slates and labels of the test rows, in the order of ctr_rows."""
        users, slates, labels = zip(*(
            ([user_id] * len(of_slate), [slate_id] * len(of_slate), of_slate)
            for _, user_id, user in self._slates()
            for slate_id, of_slate in zip(user.slate_ids, user.labels, strict=True)
        ), strict=True)
        return Rows.of(*map(np.concatenate, (users, labels, slates)))

    def _slates(self) -> Iterator[tuple[int, str, Any]]:
        inputs = self.ground.inputs()
        for partition in inputs.partitions():
            for user_id, user in inputs.slates_at(partition, (Window.TEST,)).items():
                yield partition, user_id, user

    def _popularity(self) -> FloatArray:
        scores = Popularity.load(self.ground.popularity.path(POPULARITY)).scores
        items: IntArray = np.concatenate([
            np.concatenate(user.items) for _, _, user in self._slates()
        ])
        return scores[items]

    def _crm(self, seed: int, *, whole: bool = False) -> Answer:
        states = self.ground.states(in_sample=whole, seed=seed)
        facts, manifest = states.crm.facts, states.crm.manifest()
        return Answer(
            {"rows": facts["rows"], "parameters": facts["parameters"],
             "wall_s": manifest["seconds"], "epochs": self.ground.config.crm.epochs,
             "trained_by": manifest["code"]},
            self._in_order(self._logits(states, "row_logits")),
            self._in_order(self._logits(states, "logits")),
        )

    def _logits(self, states: States, column: str) -> dict[str, list[float]]:
        """Return what a CRM says of every slate's candidates."""
        tables = [
            storage.read_table(
                states.scores.path(part_name("scores", partition)), ["slate_id", column]
            ) for partition in self.ground.inputs().partitions()
        ]
        return {
            slate_id: logits for table in tables for slate_id, logits in
            zip(table["slate_id"].to_pylist(), table[column].to_pylist(), strict=True)
        }

    def _in_order(self, logits: Mapping[str, Sequence[float]]) -> FloatArray:
        return np.concatenate([
            logits[slate_id] for _, _, user in self._slates() for slate_id in user.slate_ids
        ])

    def _with_text(self, seed: int) -> Answer:
        """Return the answer of the CRM and a small model of item texts, which learns by request."""
        states = self.ground.states(seed=seed)
        logits = self._logits(states, "logits")
        learned, chosen, asked = (self._text_rows[window] for window in WINDOWS)
        fitted = fit(learned.beside(logits), learned.labels_N,
                     chosen.beside(logits), chosen.labels_N)
        return Answer(
            {"parameters": states.crm.facts["parameters"], "rows": len(learned.labels_N),
             "model": fitted.name, "validation_auc": fitted.validation_auc},
            by_request_N=fitted.model.decision_function(asked.beside(logits)),
        )

    @cached_property
    def _text_rows(self) -> dict[Window, TextRows]:
        return read_text_rows(self.ground)

    # ----- peers

    @cached_property
    def _whole(self) -> States:
        return self.ground.states(in_sample=True)

    @cached_property
    def _exported(self) -> CTRRows:
        ground = self.ground
        examples = make_examples(
            ground.root, ground.config, ground.histories, ground.slates, ground.item_text,
            windows=WHOLE,
        )
        return export_rows(ground, self._whole, examples)

    @cached_property
    def _validation_labels(self) -> IntArray:
        """Return the labels of the exported validation rows; the test rows must be the scores'."""
        validation, test = (
            storage.read_tensors(storage.join(self._exported.folder, f"{name}.safetensors"))
            ["label_N"] for name in ("validation", "test")
        )
        if not np.array_equal(test, self.rows.labels_N):
            raise AssertionError("the exported rows are not those of the scores")
        labels_N: IntArray = validation.astype(np.int64)
        return labels_N

    def _search(self, name: str) -> Search:
        """Return what was tried with the first seed."""
        if name not in self._searches:
            self._searches[name] = search(GRIDS, "validation_auc", lambda settings: float(
                self._peer(name, settings, self.seeds[0])["validation_auc"]
            ))
        return self._searches[name]

    def _peer(self, name: str, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Return the answers of one training; it runs if its file is not there."""
        peer = dict(PEERS[name])
        model, history = peer.pop("model"), peer.pop("history")
        arguments = json.dumps({**FIXED, **peer, **settings}, sort_keys=True)
        identity = f"{self._exported.folder} {model} {history} {arguments} {seed}"
        key = storage.sha256(identity.encode())[:12]
        path = Path(self.ground.root) / "peers" / f"{name}-{key}.npz"
        path.parent.mkdir(exist_ok=True)
        run_script("fuxictr", "fuxictr_ctr.py", path, [
            "--rows", self._exported.folder, "--model", model,
            "--sizes", json.dumps(self._exported.sizes), "--settings", arguments,
            "--history", str(history), "--seed", str(seed), "--threads", str(self.threads),
        ], threads=self.threads)
        found = np.load(path)
        return {
            "validation_auc": ctr.auc(self._validation_labels, _logits(found["validation"])),
            "test": Answer(json.loads(str(found["cost"])), by_row_N=_logits(found["test"])),
        }


def _as_json(measured: Mapping[str, Estimate]) -> dict[str, Any]:
    return {metric: as_json(each.interval()) for metric, each in measured.items()}


def _gained(first: Mapping[str, Estimate], second: Mapping[str, Estimate]) -> dict[str, Any]:
    return {metric: as_json(each) for metric, each in differences(first, second).items()}


def _logits(probabilities_N: FloatArray) -> FloatArray:
    clipped = np.clip(probabilities_N, 1e-7, 1 - 1e-7)
    logits: FloatArray = np.log(clipped) - np.log1p(-clipped)
    return logits
