"""An exam and the answers of releases to it, of known quality, in the layout of the stages.

60 users with 24 rows each: every slice of the report has rows. The language model read 40 of them.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.data.schema import EXAM_SCORES, RANKED_LISTS, part_name
from engine.models.fusion import IDENTITY, Fusion
from engine.stages.exam_report import Answers
from engine.stages.slate_gates import SlateGates
from engine.types import FeedbackKind

NUM_USERS, SAMPLED = 60, 40
ROWS, SLATE = 24, 8
NUM_ITEMS = 30
FUSION = Fusion(0.5, 0.5, 0.0, IDENTITY, IDENTITY)
WEEK_S = 7 * 86_400


def make_exam(root: Path) -> Artifact:
    """Write the exam."""
    def write(uri: str) -> dict[str, Any]:
        events = {"events": np.arange(NUM_ITEMS + 1)}
        storage.write_tensors(storage.join(uri, "items.safetensors"), events)
        return {"rows": NUM_USERS * ROWS}

    return artifacts.make(str(root), "exam", {}, [], write)


def make_answers(
    root: Path, name: str, *, noise: float = 0.0, cold_noise: float = 0.0, scale: float = 1.0,
    gates_seed: int = 1,
) -> Answers:
    """Write a release's answers: the truth with noise, that on cold items apart, times a factor."""
    rows = _rows(np.random.default_rng(0), np.random.default_rng(9), noise, cold_noise, scale)

    def write(uri: str) -> dict[str, Any]:
        table = pa.Table.from_pylist(rows, schema=EXAM_SCORES)
        storage.write_table(storage.join(uri, part_name("scores", 0)), table)
        lists = pa.Table.from_pylist(_lists(rows), schema=RANKED_LISTS)
        storage.write_table(storage.join(uri, part_name("lists", 0)), lists)
        _write_gates(uri, rows, gates_seed)
        return {"rows": len(rows), "modes": {"full": len(lists)}, "unread_slates": 0, "cpu_s": 2.0}

    settings = {
        "release": name, "noise": noise, "cold": cold_noise, "scale": scale, "gates": gates_seed,
    }
    scores = artifacts.make(str(root), "release_scores", settings, [], write)
    return Answers(name, scores, FUSION, size_bytes=1_000_000)


def _rows(
    world: np.random.Generator, errors: np.random.Generator, noise: float, cold_noise: float,
    scale: float,
) -> list[dict[str, Any]]:
    rows = []
    for user in range(NUM_USERS):
        length = (0, 10, 50, 300, 900)[user % 5]
        truth = world.normal(scale=1.5, size=ROWS)
        labels = (world.random(ROWS) < 1 / (1 + np.exp(-truth))).astype(int)
        cold = world.random(ROWS) < 0.4
        wrong = errors.normal(size=ROWS) * (noise + cold_noise * cold)
        for place in range(ROWS):
            logit = scale * (truth[place] + wrong[place])
            rows.append({
                "user_id": f"u{user:02}", "slate_id": f"u{user:02}:{place // SLATE}",
                "item": 1 + place, "label": labels[place], "kind": int(FeedbackKind.EXPLICIT),
                "history_length": length, "item_events": 0 if cold[place] else 5,
                "user_events": 0 if user % 3 == 0 else 7,
                "idle_s": None if not length else (1 + user % 8) * WEEK_S, "popularity": 0.0,
                "crm_row_logit": logit, "crm_logit": logit,
                "llm_logit": logit if user < SAMPLED else None,
            })
    return rows


def _lists(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    firsts = {row["slate_id"]: row for row in rows if row["llm_logit"] is not None}
    return [
        {"liked": [1], "kinds": [int(FeedbackKind.EXPLICIT)],
         **{name: row[name] for name in (
             "user_id", "slate_id", "history_length", "user_events", "idle_s",
         )},
         "full": [1, 2], "crm": [1, 2], "popular": [1, 2], "history": []}
        for row in firsts.values()
    ]


def _write_gates(uri: str, rows: list[dict[str, Any]], seed: int) -> None:
    slates = {row["slate_id"]: row["user_id"] for row in rows if row["llm_logit"] is not None}
    gates = np.random.default_rng(seed).dirichlet(np.ones(4), size=(len(slates), 6))
    SlateGates(gates, list(slates), list(slates.values())).write(uri)
