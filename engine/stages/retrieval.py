"""CRM retrieval head -> Recall@200 on the test window, beside popularity's (Ray Data).

Each positive of a slate that is new to the user counts once: is it among the 200 best of the items
that the user has not had, by the user state before the slate? Cost: one product of the item vectors
for each test slate.
"""

from collections import Counter
from functools import partial
from typing import Any

import numpy as np

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.models.crm_scorer import CRMScorer
from engine.models.popularity import FILE as POPULARITY
from engine.models.popularity import Popularity
from engine.retrieval.top_k import top_k
from engine.stages.inputs import Inputs
from engine.stages.partitions import map_partitions
from engine.types import FloatArray, IntArray, Window

TOP = 200


def measure_recall(
    run: str,
    config: EngineConfig,
    histories: Artifact,
    slates: Artifact,
    item_text: Artifact,
    crm: Artifact,
    popularity: Artifact,
) -> Artifact:
    """Return the artifact "retrieval"; its facts are positives and the recall of both rankings."""
    inputs = Inputs.of(config, histories, slates, item_text)

    def write(uri: str) -> dict[str, Any]:
        count = partial(_count, inputs=inputs, crm=crm.uri, popularity=popularity.uri)
        total: Counter[str] = sum(map_partitions(count, inputs.partitions()), Counter())
        positives = total["positives"]
        facts = {
            "positives": positives, "top": TOP,
            **{name: total[name] / max(1, positives) for name in ("crm", "popularity")},
        }
        storage.write_json(storage.join(uri, "recall.json"), facts)
        return facts

    sources = [histories, slates, item_text, crm, popularity]
    return artifacts.make(run, "retrieval", {"top": TOP}, sources, write)


def _count(partition: int, inputs: Inputs, crm: str, popularity: str) -> Counter[str]:
    """Return the positives of one partition's test slates and how many each ranking finds."""
    scorer = CRMScorer.load(crm, inputs.catalogue(), inputs.vectors())
    vectors_ID = scorer.item_vectors()
    popular_I = Popularity.load(storage.join(popularity, POPULARITY)).positives.astype(np.float64)
    histories = inputs.histories_at(partition)
    profiles = inputs.profiles(histories)
    found = Counter[str]()
    for row in inputs.slate_table(partition).to_pylist():
        if row["window"] != Window.TEST:
            continue
        history = histories[row["user_id"]].head(row["history_length"])
        liked = {item for item, label in zip(row["items"], row["labels"], strict=True) if label}
        wanted = np.array(sorted(liked - set(history.items.tolist())), np.int64)
        if len(wanted) == 0:
            continue
        state_D = scorer.retrieval_states([history], [profiles.of(row["user_id"])])[0]
        found["positives"] += len(wanted)
        found["crm"] += hits(vectors_ID @ state_D, history.items, wanted)
        found["popularity"] += hits(popular_I, history.items, wanted)
    return found


def hits(scores_I: FloatArray, seen: IntArray, wanted: IntArray, top: int = TOP) -> int:
    """Return how many of `wanted` are among the best unseen items; ties go to the lower index."""
    is_admissible = np.ones(len(scores_I), bool)
    is_admissible[0] = False
    is_admissible[seen] = False
    admissible = np.flatnonzero(is_admissible)
    best = admissible[top_k(scores_I[admissible], top)]
    return int(np.isin(wanted, best).sum())
