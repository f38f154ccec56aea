"""The first gates of each slate that the language model read: two files of a scores artifact.

    gates.safetensors    "gates" [S, G, N]: the user's mix, or the first candidate's (`target`)
    slates.json          {"slate_ids", "user_ids"} of the S slates
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine import storage
from engine.artifacts import Artifact
from engine.errors import ArtifactError
from engine.types import FloatArray

GATES_FILE, SLATES_FILE = "gates.safetensors", "slates.json"


@dataclass(frozen=True, slots=True)
class SlateGates:
    """Gates of S slates with their ids."""

    gates_SGK: FloatArray
    slate_ids: Sequence[str]
    user_ids: Sequence[str]

    def write(self, folder: str) -> None:
        """Write both files."""
        tensors = {"gates": self.gates_SGK.astype(np.float32)}
        storage.write_tensors(storage.join(folder, GATES_FILE), tensors)
        storage.write_json(storage.join(folder, SLATES_FILE), {
            "slate_ids": list(self.slate_ids), "user_ids": list(self.user_ids),
        })


def read_gates(scores: Artifact) -> SlateGates | None:
    """Return the gates of an artifact, None if it holds none; ArtifactError if ids are missing."""
    if scores.path(GATES_FILE) not in scores.files():
        return None
    gates_SGK = storage.read_tensors(scores.path(GATES_FILE))["gates"]
    ids = storage.read_json(scores.path(SLATES_FILE))
    if len(ids["slate_ids"]) != len(gates_SGK):
        raise ArtifactError(
            f"{len(gates_SGK)} gates for {len(ids['slate_ids'])} slates in {scores.uri}"
        )
    return SlateGates(gates_SGK, ids["slate_ids"], ids["user_ids"])
