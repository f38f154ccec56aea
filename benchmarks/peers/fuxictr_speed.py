"""A model of FuxiCTR's LongCTR zoo that trains on command; runs in an environment of its own.

Reads one number of steps a line from standard input and answers each with a line of JSON: rows,
CPU-seconds and seconds of these steps. Rows are made in advance, as arrays in memory.
"""

import argparse
import json
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch
from fuxictr.pytorch.torch_utils import seed_everything
from fuxictr_models import build, table


def main() -> int:
    """Build the model and run steps until the input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", required=True, help=".npz: item_N, history_NL, label_N, fields_I")
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--width", type=int, required=True, help="of each of two embeddings")
    parser.add_argument("--top", type=int, required=True, help="events that SIM and ETA retrieve")
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seed_everything(1)
    rows = dict(np.load(options.rows))
    with tempfile.TemporaryDirectory() as root:
        fields = int(rows["fields_I"].max()) + 1
        model = build(options.model, {
            "item": table("item", len(rows["fields_I"])), "field": table("item", fields),
        }, root, {
            "embedding_dim": options.width, "learning_rate": 1e-3, "dnn_hidden_units": [256, 128],
            **({"topk": options.top} if options.model in ("SIM", "ETA") else {}),
        })
        model.train()
        model._max_gradient_norm, model._batch_index = 10.0, 0
        place = 0
        print("ready", flush=True)
        for line in sys.stdin:
            cpu_s, wall_s, work = time.process_time(), time.perf_counter(), 0
            for _ in range(int(line)):
                picked = (place + np.arange(options.batch_size)) % len(rows["item_N"])
                place += options.batch_size
                model.optimizer.zero_grad()
                model.train_step(batch(rows, picked))
                work += len(picked)
            print(json.dumps({
                "work": work, "cpu_s": time.process_time() - cpu_s,
                "wall_s": time.perf_counter() - wall_s,
            }), flush=True)
    return 0


def batch(rows: dict[str, Any], picked: Any) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Return FuxiCTR's (row features, item features, history mask)."""
    history = rows["history_NL"][picked]
    items = np.concatenate([history, rows["item_N"][picked][:, None]], axis=1).reshape(-1)
    item = {"item": torch.from_numpy(items), "field": torch.from_numpy(rows["fields_I"][items])}
    label = {"label": torch.from_numpy(rows["label_N"][picked])}
    return label, item, torch.from_numpy((history > 0).astype(np.float32))


if __name__ == "__main__":
    sys.exit(main())
