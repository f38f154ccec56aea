"""RecTools' SASRec and implicit's item-based CF on exported queries; an environment of its own.

python rectools_lists.py --data FOLDER --out FILE.parquet --model sasrec --settings '{...}' --k 200

FOLDER holds events.parquet (user, item, timestamp_s, label; before T1) and queries.parquet (query,
history, labels: events strictly before the request, oldest first). A list leaves out the items of
the history where --exclude-seen is given.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

BATCH, SESSION = 32, 200
"""Users a step, and newest events of each that SASRec reads."""


def main() -> int:
    """Train one model with one setting and answer every query."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--model", required=True, choices=("sasrec", "item-cf"))
    parser.add_argument("--settings", required=True, help="JSON")
    parser.add_argument("--k", type=int, default=200)
    parser.add_argument("--exclude-seen", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = json.loads(options.settings)
    folder = Path(options.data)
    events = pd.read_parquet(folder / "events.parquet")
    queries = pd.read_parquet(folder / "queries.parquet")
    if settings.pop("liked_only"):
        events = events[events["label"] == 1]
        queries["read"] = [
            np.asarray(items)[np.asarray(labels) == 1]
            for items, labels in zip(queries["history"], queries["labels"], strict=True)
        ]
    else:
        queries["read"] = queries["history"]
    longest = int(queries["history"].map(len).max())
    limit = options.k + (longest if options.exclude_seen else 0)
    start_s = time.perf_counter()
    answer = {"sasrec": sasrec, "item-cf": item_cf}[options.model]
    lists = answer(events, queries, limit, settings, options)
    seconds = time.perf_counter() - start_s
    rows = [
        _admissible(lists.get(query, ()), history if options.exclude_seen else (), options.k)
        for query, history in zip(queries["query"], queries["history"], strict=True)
    ]
    pd.DataFrame({"query": queries["query"], "items": rows, "seconds": seconds}).to_parquet(
        options.out
    )
    return 0


def _admissible(items: Sequence[int], seen: Sequence[int], k: int) -> list[int]:
    past = set(map(int, seen))
    return [int(item) for item in items if int(item) not in past][:k]


def sasrec(
    events: pd.DataFrame, queries: pd.DataFrame, k: int, settings: dict[str, Any], options: Any
) -> Mapping[int, Sequence[int]]:
    """Return the lists of RecTools' SASRec; each query is a user of its own."""
    from lightning_fabric import seed_everything
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    seed_everything(options.seed)
    epochs = math.ceil(settings.pop("steps") * BATCH / events["user"].nunique())
    model = SASRecModel(
        n_factors=64, n_blocks=2, n_heads=2, session_max_len=SESSION, batch_size=BATCH,
        epochs=epochs, deterministic=True, recommend_torch_device="cpu", **settings,
    )
    model.fit(Dataset.construct(pd.DataFrame({
        Columns.User: events["user"], Columns.Item: events["item"], Columns.Weight: 1.0,
        Columns.Datetime: pd.to_datetime(events["timestamp_s"], unit="s"),
    })))
    known = queries[queries["read"].map(len) > 0]
    exploded = known[["query", "read"]].explode("read")
    place = exploded.groupby("query").cumcount()
    asked = Dataset.construct(pd.DataFrame({
        Columns.User: exploded["query"].to_numpy(), Columns.Item: exploded["read"].astype(int),
        Columns.Weight: 1.0, Columns.Datetime: pd.to_datetime(place.to_numpy(), unit="s"),
    }))
    found = model.recommend(
        known["query"].to_numpy(), asked, k=min(k, events["item"].nunique()), filter_viewed=False,
        on_unsupported_targets="ignore",
    )
    return {query: group[Columns.Item].tolist() for query, group in found.groupby(Columns.User)}


def item_cf(
    events: pd.DataFrame, queries: pd.DataFrame, k: int, settings: dict[str, Any], options: Any
) -> Mapping[int, Sequence[int]]:
    """Return the lists of implicit's item-based CF (cosine of item columns)."""
    from implicit.nearest_neighbours import CosineRecommender
    from scipy.sparse import csr_matrix

    width = 1 + int(max(events["item"].max(), np.concatenate([*queries["history"], [0]]).max()))
    users = events["user"].astype("category").cat.codes.to_numpy()
    ones = np.ones(len(events), np.float32)
    matrix = csr_matrix((ones, (users, events["item"].to_numpy())), shape=(users.max() + 1, width))
    matrix.data[:] = 1
    model = CosineRecommender(num_threads=options.threads, **settings)
    model.fit(matrix, show_progress=False)
    lists = {}
    for query, items in zip(queries["query"], queries["read"], strict=True):
        if not len(items):
            continue
        row = csr_matrix(
            (np.ones(len(items), np.float32), (np.zeros(len(items), int), np.asarray(items))),
            shape=(1, width),
        )
        ids, scores = model.recommend(0, row, N=min(k, width), filter_already_liked_items=False)
        lists[query] = [int(item) for item, score in zip(ids, scores, strict=True) if score > 0]
    return lists


if __name__ == "__main__":
    sys.exit(main())
