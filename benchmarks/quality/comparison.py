"""Scores of several rows on the same test rows -> paired differences, seeds averaged.

A row in candidate scope scored fewer users: the two are then compared where both have a score.
What a row adds to the CRM is also shown by length of history and by the item's training events.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from benchmarks.quality.rows import ROWS
from engine import storage
from engine.artifacts import Artifact
from engine.metrics import ctr
from engine.metrics.ctr import Rows
from engine.metrics.estimates import Estimate, differences
from engine.models.fusion import Fusion
from engine.stages.comparison import HISTORY_LENGTHS, as_json, model_logits
from engine.stages.score_rows import read_sample, sample_keys
from engine.types import IntArray, Window

Column = tuple[str, str]
"""Row and model, e.g. ("bank-user", "llm")."""
RIVALS = ("lora-64", "lora-8", "lora-equal", "bank-uniform")
"""Rows that a routed bank should beat; the first has its size."""
BASE = "bank-user"
"""The row whose scores hold what does not depend on a row: CRM, popularity, zero-shot."""
SLICES = {
    **{f"history {name}": ("history_length", *ends) for name, ends in HISTORY_LENGTHS.items()},
    "items without an event in training": ("item_events", 0, 1),
    "items with 1 to 19": ("item_events", 1, 20),
    "items with 20 and over": ("item_events", 20, 2**31),
}
"""Name -> column of a table, lowest value, first value beyond it."""


def asked_rows(slates: Artifact, prompts: Artifact, events_I: IntArray) -> pd.DataFrame:
    """Return the rows of the test sample by slate and slot.

    Columns: user_id, label, item, history_length (events before the slate) and item_events (those
    of the item in training; `events_I`: by item index [items + 1]).
    """
    asked = _concat(prompts, "prompts/", ["slate_id", "window", "first_slot", "labels"])
    asked = asked[asked["window"] == int(Window.TEST)]
    asked["slot"] = [first + np.arange(len(labels))
                     for first, labels in zip(asked["first_slot"], asked["labels"], strict=True)]
    asked = asked.explode(["slot", "labels"]).rename(columns={"labels": "label"})
    asked = asked.astype({"slot": int, "label": int})[["slate_id", "slot", "label"]]
    facts = _concat(slates, "slates/", ["slate_id", "user_id", "items", "history_length"])
    table = asked.merge(facts, on="slate_id")
    table["item"] = [items[slot] for items, slot in zip(table["items"], table["slot"], strict=True)]
    table["item_events"] = events_I[table["item"].to_numpy(int)]
    return table.drop(columns="items").set_index(["slate_id", "slot"]).sort_index()


def _concat(artifact: Artifact, folder: str, columns: list[str]) -> pd.DataFrame:
    parts = [storage.read_table(uri, columns) for uri in artifact.files(folder)]
    return pa.concat_tables(parts).to_pandas()


def answered_rows(scores: Artifact, fusion: Fusion, asked: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that were asked with the logits of each model in a scores artifact."""
    sample = read_sample(scores, Window.TEST)
    keys = sample_keys(scores, Window.TEST)
    answers = pd.DataFrame(
        {**model_logits(sample, fusion), "slate_id": keys["slate_id"], "slot": keys["slot"]}
    )
    return asked.join(answers.set_index(["slate_id", "slot"]), validate="1:1")


class Comparison:
    """All rows of a plan that are done."""

    def __init__(
        self, sheets: Mapping[str, Sequence[pd.DataFrame]], *, num_draws: int, seed: int
    ) -> None:
        """`sheets`: by row, one table of `Results.table` for each seed."""
        self.sheets, self.num_draws, self.seed = sheets, num_draws, seed

    def to_json(self) -> list[dict[str, Any]]:
        """Return each pair with its rows, users, seeds and the intervals of the difference."""
        return [
            {**self.compare(first, second), **self._slices(first, second)}
            for first, second in self.pairs()
        ]

    def pairs(self) -> Iterator[tuple[Column, Column]]:
        """Yield what is worth comparing among the rows that are done."""
        for name in self.sheets:
            rivals = RIVALS if ROWS[name].is_routed else ()
            for rival in rivals:
                if rival in self.sheets:
                    yield (name, "llm"), (rival, "llm")
            if "shuffled" in self._models(name):
                yield (name, "llm"), (name, "shuffled")
            if name == BASE:
                yield (name, "llm"), (name, "zero_shot")
            elif ROWS[name].is_routed and BASE in self.sheets:
                yield (name, "llm"), (BASE, "llm")
            yield (name, "fused"), (name, "crm_calibrated")
            if rivals and rivals[0] in self.sheets:
                yield (name, "fused"), (rivals[0], "fused")

    def _slices(self, first: Column, second: Column) -> dict[str, Any]:
        """Return the differences by slice of what a row adds to the CRM; of other pairs, nothing.
        """
        if second[1] != "crm_calibrated":
            return {}
        table = self.sheets[first[0]][0]
        inside = {
            name: table.index[table[column].between(low, high, inclusive="left")]
            for name, (column, low, high) in SLICES.items()
        }
        return {"slices": {
            name: self.compare(first, second, index) for name, index in inside.items() if len(index)
        }}

    def compare(
        self, first: Column, second: Column, within: pd.Index | None = None
    ) -> dict[str, Any]:
        """Return the paired difference of two columns, each averaged over its seeds.

        `within`: slates and slots of the rows to look at; all that both have, if None.
        """
        index = self.sheets[first[0]][0].index if within is None else within
        shared = index.intersection(self.sheets[second[0]][0].index).sort_values()
        table = self.sheets[first[0]][0].loc[shared]
        slates = shared.get_level_values("slate_id").to_numpy()
        rows = Rows.of(table["user_id"].to_numpy(), table["label"].to_numpy(), slates)
        one, other = self._measure(first, shared, rows), self._measure(second, shared, rows)
        return {
            "first": "/".join(first), "second": "/".join(second),
            "num_rows": len(rows), "num_users": rows.num_users,
            "seeds": [len(self.sheets[first[0]]), len(self.sheets[second[0]])],
            "difference": {
                name: as_json(each) for name, each in differences(one, other).items()
                if name in ctr.SHOWN
            },
        }

    def _models(self, name: str) -> Sequence[str]:
        return list(self.sheets[name][0].columns)

    def _measure(self, column: Column, index: pd.Index, rows: Rows) -> dict[str, Estimate]:
        name, model = column
        measured = [
            ctr.measure(rows, sheet.loc[index, model].to_numpy(),
                        num_draws=self.num_draws, seed=self.seed)
            for sheet in self.sheets[name]
        ]
        return mean_of_seeds(measured)


def mean_of_seeds(measured: Sequence[Mapping[str, Estimate]]) -> dict[str, Estimate]:
    """Return the mean of each metric over the seeds of one row."""
    return {metric: mean([each[metric] for each in measured]) for metric in measured[0]}


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean over seeds, value by value and draw by draw."""
    return Estimate(
        float(np.mean([each.value for each in estimates])),
        np.mean([each.draws_D for each in estimates], axis=0),
    )
