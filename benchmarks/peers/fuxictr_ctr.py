"""FuxiCTR's DIN and SIM on exported rows; runs in an environment of its own.

python fuxictr_ctr.py --rows FOLDER --out FILE.npz --model SIM --seed 1 --settings '{...}'

Validation chooses the epoch (FuxiCTR's early stop on AUC). FILE holds the probabilities of
validation and test and the cost.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.pytorch.torch_utils import seed_everything
from fuxictr_models import build, table
from safetensors.numpy import load_file

DENSE = "dense_{}"


def main() -> int:
    """Train one model with one setting and write its answers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--model", required=True, choices=("DIN", "SIM"))
    parser.add_argument("--sizes", required=True, help="JSON: sizes of the embedding tables")
    parser.add_argument("--settings", required=True, help="JSON: arguments of the model")
    parser.add_argument("--history", type=int, required=True, help="newest events that are read")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seed_everything(options.seed)
    settings = json.loads(options.settings)
    size = settings.pop("batch_size")
    folder = Path(options.rows)
    item_codes = load_file(folder / "items.safetensors")["item_codes_IK"]
    windows = {
        name: Batches(load_file(folder / f"{name}.safetensors"), item_codes, options.history,
                      size, options.seed if name == "train" else None)
        for name in ("train", "validation", "test")
    }
    described = features(windows["train"], json.loads(options.sizes))
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        model = build(options.model, described, root, settings)
        model.fit(windows["train"], epochs=options.epochs,
                  validation_data=windows["validation"])
        cost = {"cpu_s": time.process_time() - cpu_s, "wall_s": time.perf_counter() - wall_s}
        answers = {name: model.predict(windows[name]) for name in ("validation", "test")}
    parameters = sum(weight.numel() for weight in model.parameters())
    np.savez(options.out, **answers, cost=json.dumps(
        {**cost, "epochs": model._epoch_index + 1, "parameters": parameters,
         "rows": len(windows["train"].arrays["label_N"])}
    ))
    return 0


class Batches:
    """Rows of one window in FuxiCTR's form: (row features, item features, history mask)."""

    def __init__(
        self, arrays: dict[str, Any], item_codes_IK: Any, history: int, size: int, seed: int | None
    ) -> None:
        self.arrays, self.item_codes_IK = arrays, item_codes_IK
        self.history, self.size = history, size
        self.rng = None if seed is None else np.random.default_rng(seed)

    def __len__(self) -> int:
        return -(-len(self.arrays["label_N"]) // self.size)

    def __iter__(self) -> Iterator[tuple[dict[str, Any], dict[str, Any], Any]]:
        order = np.arange(len(self.arrays["label_N"]))
        if self.rng is not None:
            self.rng.shuffle(order)
        for start in range(0, len(order), self.size):
            yield self._batch(order[start : start + self.size])

    def _batch(self, rows: Any) -> tuple[dict[str, Any], dict[str, Any], Any]:
        arrays = self.arrays
        history = arrays["history_NL"][rows][:, -self.history :]
        levels = arrays["levels_NL"][rows][:, -self.history :]
        width = max(1, int((levels > 0).sum(axis=1).max()))
        history, levels = history[:, -width:], levels[:, -width:]
        items = np.concatenate([history, arrays["item_N"][rows][:, None]], axis=1).reshape(-1)
        target = np.zeros((len(rows), 1), np.int32)         # the target has no rating
        row = {
            "user": arrays["user_N"][rows], "user_codes": arrays["user_codes_NK"][rows],
            **{DENSE.format(k): column for k, column in enumerate(arrays["dense_NF"][rows].T)},
            "label": arrays["label_N"][rows],
        }
        item = {
            "item": items, "item_codes": self.item_codes_IK[items],
            "level": np.concatenate([levels, target], axis=1).reshape(-1),
        }
        mask = torch.from_numpy((levels > 0).astype(np.float32))
        return _tensors(row), _tensors(item), mask


def _tensors(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.from_numpy(np.ascontiguousarray(each)) for name, each in arrays.items()}


def features(train: Batches, sizes: dict[str, int]) -> dict[str, Any]:
    """Return FuxiCTR's description of the features."""
    def pooled(source: str, size: int, width: int) -> dict[str, Any]:
        return {**table(source, size), "type": "sequence", "max_len": width,
                "feature_encoder": "layers.MaskedAveragePooling()"}

    return {
        "user": table("user", sizes["users"]),
        "user_codes": pooled("user", sizes["user_codes"],
                             train.arrays["user_codes_NK"].shape[1]),
        **{
            DENSE.format(k): {"source": "user", "type": "numeric"}
            for k in range(train.arrays["dense_NF"].shape[1])
        },
        "item": table("item", sizes["items"]),
        "item_codes": pooled("item", sizes["item_codes"], train.item_codes_IK.shape[1]),
        "level": table("item", sizes["levels"]),
    }


if __name__ == "__main__":
    sys.exit(main())
