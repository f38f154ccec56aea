"""A "scores" artifact with known truths, in the layout that the scores stage writes.

Users differ in taste; the CRM sees the taste through noise, the language model too, zero-shot sees
nothing, and shuffled gates lose half of what the language model knows.
"""

import numpy as np
import pyarrow as pa

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.data.schema import SCORES, part_name
from engine.types import FeedbackKind, Window

NUM_USERS = 60
ROWS = 20
SLATE = 10
SAMPLED = 40
"""Users (of each window) that the language model scored."""


def make_scores(
    run: str, seed: int = 0, *, implicit: bool = False, partitions: int = 3,
    references: bool = True,
) -> Artifact:
    """Write 60 users x 20 rows of validation and of test; 40 users of each are in the sample."""
    def write(folder: str) -> dict[str, int]:
        rng = np.random.default_rng(seed)
        rows = [
            row for window in (Window.VALIDATION, Window.TEST) for user in range(NUM_USERS)
            for row in _user_rows(rng, window, user, implicit)
        ]
        if not references:
            rows = [{**row, "zero_shot_logit": None, "shuffled_logit": None} for row in rows]
        for part in range(partitions):
            mine = [row for row in rows if int(row["user_id"][1:]) % partitions == part]
            table = pa.Table.from_pylist(mine, SCORES)
            storage.write_table(storage.join(folder, part_name("scores", part)), table)
        _write_gates(folder, rng, rows)
        return {"rows": len(rows)}

    settings = {"seed": seed, "implicit": implicit, "references": references}
    return artifacts.make(run, "scores", settings, [], write)


def _user_rows(rng, window, user, implicit):
    truth = rng.normal(scale=1.5, size=ROWS)
    labels = (rng.random(ROWS) < 1 / (1 + np.exp(-truth))).astype(int)
    know = truth + rng.normal(scale=0.7, size=ROWS)
    sampled = user < SAMPLED
    for place in range(ROWS):
        slate = place // SLATE
        kind = FeedbackKind.EXPLICIT
        if implicit:
            kind = FeedbackKind.REPEAT if place % 2 else FeedbackKind.NEW
        llm = 0.5 * know[place] + rng.normal(scale=0.5)
        yield {
            "user_id": f"u{user}", "slate_id": f"u{user}:{window}:{slate}", "window": window,
            "item": 1 + place, "label": labels[place], "kind": kind,
            "timestamp_s": 1000 * window + place, "history_length": 15 * user,
            "popularity": 0.3 * truth[place] + rng.normal(),
            "crm_row_logit": know[place],
            "crm_logit": 2 * (know[place] + rng.normal(scale=0.8)) + 1,       # overconfident
            "llm_logit": llm if sampled else None,
            "zero_shot_logit": 3 * rng.normal() if sampled else None,
            "shuffled_logit": 0.5 * llm + rng.normal(scale=0.5) if sampled else None,
        }


def _write_gates(folder, rng, rows):
    slates = {row["slate_id"]: row["user_id"] for row in rows if row["llm_logit"] is not None}
    gates = rng.dirichlet(np.ones(4), size=(len(slates), 6)).astype(np.float32)
    storage.write_tensors(storage.join(folder, "gates.safetensors"), {"gates": gates})
    storage.write_json(storage.join(folder, "slates.json"), {
        "slate_ids": list(slates), "user_ids": list(slates.values()),
    })
