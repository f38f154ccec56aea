"""The CRM again under other seeds and training windows: how much a figure owes to the draw.

    crm       trained on [start, T0): the form that is released
    full      trained on [start, T1): what the same model reaches with all training events
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.compute as pc

from engine import storage
from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.data.schema import part_name
from engine.metrics import ctr
from engine.stages.crm import score_crm, train_crm
from engine.stages.score_rows import keep_users
from engine.types import Window

WINDOWS = {"crm": (Window.CRM,), "full": (Window.CRM, Window.BANK)}


def train_crm_seeds(
    run: str, config: EngineConfig, histories: Artifact, slates: Artifact, item_text: Artifact
) -> list[dict[str, Any]]:
    """Return the test metrics of each seed of `evaluation.crm_seeds` and training window."""
    found = []
    for seed in config.evaluation.crm_seeds:
        for name, windows in WINDOWS.items():
            crm = train_crm(run, config, histories, slates, item_text, windows=windows, seed=seed)
            scores = score_crm(run, config, histories, slates, item_text, crm)
            found.append({"seed": seed, "window": name, **_test_metrics(config, slates, scores)})
    return found


def _test_metrics(config: EngineConfig, slates: Artifact, scores: Artifact) -> dict[str, float]:
    """Return AUC of row-level and slate-level logits, and per-user AUC of the row-level ones."""
    parts = list(_test_rows(config, slates, scores))
    users, labels, row_logits, logits = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    rows = ctr.Rows.of(users, labels)
    return {
        "auc": ctr.auc(labels, row_logits), "slate_auc": ctr.auc(labels, logits),
        "gauc": ctr.gauc(rows, row_logits),
    }


def _test_rows(
    config: EngineConfig, slates: Artifact, scores: Artifact
) -> Iterator[tuple[Any, ...]]:
    """Yield users, labels, row-level and slate-level logits of each partition's test rows.

    Of more than `evaluation.max_rows`, those of whole users by the hash of `score_rows`.
    """
    test = pc.field("window") == int(Window.TEST)
    uris = [slates.path(part_name("slates", partition))
            for partition in range(config.histories.num_partitions)]
    total = sum(
        pc.sum(pc.list_value_length(table["labels"])).as_py() or 0 for table in
        (storage.read_table(uri, ["window", "labels"]).filter(test) for uri in uris)
    )
    share = min(1.0, config.evaluation.max_rows / max(1, total))
    for partition, uri in enumerate(uris):
        table = storage.read_table(uri, ["slate_id", "user_id", "window", "labels"]).filter(test)
        truth = keep_users(table, share).to_pylist()
        found = {
            row["slate_id"]: row
            for row in storage.read_table(scores.path(part_name("scores", partition)), [
                "slate_id", "window", "logits", "row_logits",
            ]).filter(test).to_pylist()
        }
        if truth:
            yield (
                np.concatenate([[row["user_id"]] * len(row["labels"]) for row in truth]),
                np.concatenate([row["labels"] for row in truth]),
                np.concatenate([found[row["slate_id"]]["row_logits"] for row in truth]),
                np.concatenate([found[row["slate_id"]]["logits"] for row in truth]),
            )
