"""The result files of one plan, which outlast the trainings that they tell of.

    <folder>/<row>-<seed>.json                     cost and metrics of one training
    <folder>/logits/<row>-<seed>.safetensors       what it answered on the test sample, by model

Logits stand in the order of slates and slots and hold nothing of the data set. Whoever has the data
set compares rows that were trained at other times or elsewhere without training them again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.race import write_result
from engine import storage
from engine.errors import ArtifactError

Json = dict[str, Any]
MODELS = ("llm", "zero_shot", "shuffled", "crm_calibrated", "fused")
"""Models whose logits are kept, where a row has them."""


class Results:
    """The rows that are done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def row(self, name: str, seed: int, settings: str) -> Json | None:
        """Return a row's JSON; None if it is not done under the settings with this digest."""
        found = _read(self._path(name, seed), settings)
        return found if self._logits(name, seed).exists() else None

    def has(self, name: str, settings: str) -> bool:
        """Return whether a row without a language model is done under settings of this digest."""
        return _read(self.folder / f"{name}.json", settings) is not None

    def write(self, row: Mapping[str, Any], table: pd.DataFrame) -> None:
        """Write a row's JSON and logits; `table`: as `Results.table` returns it."""
        kept = {model: table[model].to_numpy(np.float32) for model in MODELS if model in table}
        storage.write_tensors(str(self._logits(row["row"], row["seed"])), kept)
        write_result({**row, "sample_digest": sample_digest(table)},
                     self._path(row["row"], row["seed"]))

    def table(self, row: Mapping[str, Any], asked: pd.DataFrame) -> pd.DataFrame:
        """Return the rows that were asked with the logits of each model.

        Raises ArtifactError if the row was measured on other rows.
        """
        if row["sample_digest"] != sample_digest(asked):
            raise ArtifactError(
                f"{self._path(row['row'], row['seed'])} was measured on other rows than this plan "
                "asks; delete it to train the row again"
            )
        return asked.assign(**storage.read_tensors(str(self._logits(row["row"], row["seed"]))))

    def _path(self, name: str, seed: int) -> Path:
        return self.folder / f"{name}-{seed}.json"

    def _logits(self, name: str, seed: int) -> Path:
        return self.folder / "logits" / f"{name}-{seed}.safetensors"


def _read(path: Path, settings: str) -> Json | None:
    """Return a file's JSON; None if there is none of the settings with this digest."""
    found: Json = json.loads(path.read_text()) if path.exists() else {}
    return found if found.get("settings_digest") == settings else None


def sample_digest(table: pd.DataFrame) -> str:
    """Return a digest of slates, slots and labels in their order."""
    lines = (f"{slate} {slot} {label}" for (slate, slot), label in table["label"].items())
    return storage.sha256("\n".join(lines).encode())[:12]
