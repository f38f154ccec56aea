"""The CRM's own rows and features as flat arrays, for models of other libraries.

One file for each of train [start, T1), validation and test, with N rows in our order:

    user_N  user_codes_NK  item_N  label_N      ids and field codes; 0 is unknown or padding
    history_NL  levels_NL                       events strictly before the row, oldest first,
                                                left-padded; a level codes rating and label
    dense_NF                                    the CRM's statistics of user, item and both

and item_codes_IK by item. Item statistics of a training row leave its own user out, as the CRM's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.quality.ground import Ground, States
from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.models.crm_features import CRMRows, join
from engine.models.crm_scorer import CRMScorer
from engine.stages.inputs import Inputs
from engine.training.crm_loop import example_uri, read_rows
from engine.types import IntArray, Window

Arrays = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CTRRows:
    """Where the arrays are, and how large the embedding tables must be."""

    folder: str
    sizes: dict[str, int]


def export_rows(ground: Ground, states: States, examples: Artifact) -> CTRRows:
    """Write the rows of the CRM `states` stands for, which `examples` trained."""
    settings = {"max_history": ground.config.crm.max_history}
    write = partial(_write, ground=ground, states=states, examples=examples)
    made = artifacts.make(ground.root, "ctr_rows", settings, [examples, states.crm], write)
    return CTRRows(made.uri, dict(made.facts["sizes"]))


def _write(folder: str, *, ground: Ground, states: States, examples: Artifact) -> Arrays:
    inputs = ground.inputs()
    scorer = CRMScorer.load(states.crm.uri, inputs.catalogue(), inputs.vectors())
    limit = ground.config.crm.max_history
    counts = {}
    for name, rows in (
        ("train", _training(inputs, examples)),
        ("validation", _scored(inputs, scorer, Window.VALIDATION)),
        ("test", _scored(inputs, scorer, Window.TEST)),
    ):
        arrays = _flat(join(list(rows)), scorer.space.items.rows_I, limit)
        storage.write_tensors(storage.join(folder, f"{name}.safetensors"), arrays)
        counts[name] = len(arrays["label_N"])
    items = scorer.space.items
    storage.write_tensors(storage.join(folder, "items.safetensors"), {
        "item_codes_IK": items.codes_IK.astype(np.int32),
    })
    shape = examples.facts["shape"]
    return {"rows": counts, "sizes": {
        "users": shape["num_users"], "items": len(items.rows_I),
        "user_codes": shape["num_user_codes"], "item_codes": shape["num_item_codes"],
        "levels": shape["num_levels"],
    }}


def _training(inputs: Inputs, examples: Artifact) -> Iterator[CRMRows]:
    for partition, count in enumerate(examples.facts["row_counts"]):
        if count:
            yield read_rows(example_uri(examples.uri, partition))


def _scored(inputs: Inputs, scorer: CRMScorer, window: Window) -> Iterator[CRMRows]:
    """Yield each user's rows, in the order of the scores artifact."""
    for partition in inputs.partitions():
        histories = inputs.histories_at(partition)
        profiles = inputs.profiles(histories)
        for user_id, user in inputs.slates_at(partition, (window,)).items():
            rows = scorer.rows(
                profiles.of(user_id), histories[user_id], np.concatenate(user.items),
                np.concatenate(user.row_history_lengths),
            )
            rows.labels_B[:] = np.concatenate(user.labels)
            yield rows


def _flat(rows: CRMRows, known_I: IntArray, limit: int) -> Arrays:
    """Return one window's arrays; an item that training never saw becomes 0."""
    requests = rows.requests_B
    lengths = rows.lengths_R[requests]
    width = max(1, min(limit, int(lengths.max(initial=0))))
    steps = np.arange(width)[None]
    places = lengths[:, None] - width + steps           # the newest event stands last
    seen = places >= 0
    events = np.where(seen, places + rows.starts_R[requests][:, None], 0)
    seen_items = np.where(known_I > 0, np.arange(len(known_I)), 0)
    return {
        "user_N": rows.users_R[requests].astype(np.int32),
        "user_codes_NK": (rows.codes_RK * (rows.weights_RK > 0))[requests].astype(np.int32),
        "item_N": seen_items[rows.items_B].astype(np.int32),
        "label_N": rows.labels_B.astype(np.float32),
        "history_NL": (seen_items[rows.event_items_E[events]] * seen).astype(np.int32),
        "levels_NL": (rows.event_levels_E[events] * seen).astype(np.int32),
        "dense_NF": np.concatenate(
            [rows.dense_RF[requests], rows.dense_BF], axis=1
        ).astype(np.float32),
    }
