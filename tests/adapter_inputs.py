"""Prompts and CRM states of a small bank training, without the stages before it."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from engine import storage
from engine.data.schema import PROMPTS
from engine.types import Window

NUM_SLATES, USER_DIM, TARGET_DIM = 22, 6, 5


def write_inputs(folder: Path) -> dict[str, Any]:
    """Write two partitions of prompts whose labels depend on the user's state."""
    draw = np.random.default_rng(3)
    files: dict[str, list[str]] = {"prompt_files": [], "state_files": []}
    for part in range(2):
        prompts, states = [], []
        for number in range(NUM_SLATES // 2):
            size = int(draw.integers(1, 5))
            taste = int(draw.integers(0, 2))
            blocks = [draw.integers(5, 300, draw.integers(3, 8)).tolist() for _ in range(size)]
            identity = {"slate_id": f"{part}-{number:03d}", "user_id": f"u{part}-{number}"}
            labels = [taste if block[0] % 4 else 1 - taste for block in blocks]
            prompts.append({
                **identity, "window": int(Window.BANK), "first_slot": 0,
                "prefix": draw.integers(5, 300, draw.integers(4, 20)).tolist(), "blocks": blocks,
                "labels": labels, "cut": 0,
            })
            states.append({
                "slate_id": identity["slate_id"], "logits": [0.0] * size,
                "user_state": ((2 * taste - 1) + draw.normal(size=USER_DIM) / 2).tolist(),
                "target_states": draw.normal(size=size * TARGET_DIM).tolist(),
            })
        for name, table in (
            ("prompt_files", pa.Table.from_pylist(prompts, schema=PROMPTS)),
            ("state_files", pa.Table.from_pylist(states)),
        ):
            uri = str(folder / f"{name}-{part}.parquet")
            storage.write_table(uri, table)
            files[name].append(uri)
    return {**{name: tuple(uris) for name, uris in files.items()}, "crm_key": "crm-key"}
