"""Training state of a DeepSpeed engine <-> a checkpoint folder.

    <folder>/state/...    DeepSpeed's shards (one tag per folder: stage 3 ignores the tag asked for)
    <folder>/latest       DeepSpeed's own pointer to the tag

Frozen parameters are left out. A checkpoint belongs to one number of processes.
"""

from pathlib import Path
from typing import Any

from engine.errors import ArtifactError
from engine.training.session import Session

TAG = "state"


def save_state(engine: Any, folder: Path, session: Session, step: int, **facts: Any) -> None:
    """Write optimiser, schedule and trainable weights after `step` steps (collective)."""
    client_state = {"step": step, "world_size": session.world_size, **facts}
    engine.save_checkpoint(
        str(folder), tag=TAG, client_state=client_state, exclude_frozen_parameters=True
    )


def load_state(engine: Any, folder: Path, session: Session) -> dict[str, Any]:
    """Restore an engine and return what was passed to `save_state` (`step` and the facts).

    Raises ArtifactError if the folder holds no state, or one of another number of processes.
    """
    shards = len(list(folder.glob(f"{TAG}/*optim_states.pt"))) or session.world_size
    if shards not in (1, session.world_size):
        raise ArtifactError(
            f"checkpoint {folder} was written by {shards} processes, now {session.world_size}; "
            "start under a new name or with the same number of workers"
        )
    path, client_state = engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)
    if path is None or "step" not in client_state:
        raise ArtifactError(f"checkpoint {folder} holds no training state {TAG!r}")
    if client_state["world_size"] != session.world_size:
        raise ArtifactError(
            f"checkpoint {folder} was written by {client_state['world_size']} processes, "
            f"now {session.world_size}; start under a new name or with the same number of workers"
        )
    return dict(client_state)


def checkpoint_name(step: int) -> str:
    """Return the folder name of the checkpoint after a step; names sort like steps."""
    return f"step_{step:07d}"
