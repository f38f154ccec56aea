"""What finding candidates costs over many items: exact search and faiss, in turn, one thread.

python -m benchmarks.retrieval --json benchmarks/results/retrieval.json
    [--sizes 10000 100000 1000000] [--rounds 5] [--probes 64] [--limit 200]
    [--crm FOLDER --histories FOLDER --item-text FOLDER]

For each size and filter: requests per CPU-second, wall time of a request, and which share of the
exact answer the approximate one holds. Filters are ready when the clock starts: to make them costs
both the same.

Generated vectors are clustered (as many clusters as sqrt(items), of unequal sizes), some directions
vary more than others, and a popularity that few items have much of makes vectors longer and moves
them in one direction; a state lies between a cluster and the others, and likes what is popular.
They fill all dimensions. With a trained CRM (artifacts of a run) its own vectors are taken, as many
as are wanted by mixing each with one of its 8 nearest and some noise, and the states of its users.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import faiss
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.race import circumstances, race, summarise, write_result
from engine import storage
from engine.config import RankingConfig, RetrievalConfig, SourceConfig
from engine.data.catalogue import Catalogue
from engine.data.layers import read_histories
from engine.data.profiles import Profiles
from engine.data.schema import histories_of
from engine.models.crm_scorer import FACTS, CRMScorer
from engine.retrieval.cells import CellIndex
from engine.retrieval.index import BoolArray, ExactIndex, ItemIndex
from engine.types import FloatArray

SIZES = (10_000, 100_000, 1_000_000)
WIDTH = 64
"""Of states and vectors, as the CRM's default."""
STATES = 50
SEEN, LIKED = 300, 3_000
"""A user has seen so many of so many items that suit them best."""
MIB = 2**20

Draw = Callable[[int], "Items"]


@dataclass(frozen=True, slots=True)
class Items:
    """Vectors, row 0 being the unknown item, and states of users."""

    vectors_ID: FloatArray
    states_BD: FloatArray


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description="Race exact and approximate retrieval.")
    parser.add_argument("--json", required=True, help="file for the result")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="items")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--probes", type=int, default=RetrievalConfig().probes)
    parser.add_argument("--limit", type=int, default=RankingConfig().max_candidates)
    parser.add_argument("--crm", help="folder of a trained CRM")
    parser.add_argument("--histories", help="folder of the histories it learned from")
    parser.add_argument("--item-text", help="folder of its text vectors")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    draws: dict[str, Draw] = {"generated": generate}
    if options.crm:
        trained = read_trained(options.crm, options.histories, options.item_text)
        draws["trained"] = partial(multiply, trained)
    result: dict[str, Any] = {
        "benchmark": "retrieval", "command": " ".join(sys.argv[1:]), **circumstances(),
        "faiss": faiss.__version__, "width": WIDTH, "limit": options.limit,
        "probes": options.probes, "states": STATES,
    }
    with threadpool_limits(1):
        for kind, draw in draws.items():
            result[kind] = {}
            for size in options.sizes:
                found = measure(draw(size), options.probes, options.limit, options.rounds)
                result[kind][str(size)] = found
                print_table(kind, size, found)
                write_result(result, options.json)
    return 0


def measure(items: Items, probes: int, limit: int, rounds: int) -> dict[str, Any]:
    """Return the cost of building and, for each filter, of searching; and the recall."""
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    index = CellIndex(items.vectors_ID, RetrievalConfig(probes=probes))
    found: dict[str, Any] = {
        "build_cpu_s": time.process_time() - cpu_s, "build_s": time.perf_counter() - wall_s,
        "index_mib": index.size_bytes / MIB, "vectors_mib": items.vectors_ID.nbytes / MIB,
        "filters": {},
    }
    exact = ExactIndex(items.vectors_ID)
    for name, allowed in filters(items).items():
        searches: dict[str, Callable[[], float]] = {
            kind: partial(search_all, subject, items.states_BD, allowed, limit)
            for kind, subject in (("exact", exact), ("faiss", index))
        }
        found["filters"][name] = {
            "allowed_share": float(np.mean([each.mean() for each in allowed])),
            **summarise(race(searches, rounds), "exact", "requests"),
            **recall(index, exact, items.states_BD, allowed, limit),
        }
    return found


def search_all(
    index: ItemIndex, states_BD: FloatArray, allowed: Sequence[BoolArray], limit: int
) -> float:
    """Answer every state; return how many."""
    for state_D, own in zip(states_BD, allowed, strict=True):
        index.search(state_D, own, limit)
    return float(len(states_BD))


def recall(
    index: ItemIndex, exact: ItemIndex, states_BD: FloatArray, allowed: Sequence[BoolArray],
    limit: int,
) -> dict[str, float]:
    """Return the share of the exact answers that is found: mean and lowest of a state."""
    shares = []
    for state_D, own in zip(states_BD, allowed, strict=True):
        wanted = exact.search(state_D, own, limit)
        shares.append(len(np.intersect1d(wanted, index.search(state_D, own, limit))) / len(wanted))
    return {"recall": float(np.mean(shares)), "lowest_recall": float(min(shares))}


def print_table(kind: str, size: int, found: Mapping[str, Any]) -> None:
    """Print what one size gave."""
    print(f"{kind}, {size:,} items: index of {found['index_mib']:.0f} MiB in "
          f"{found['build_cpu_s']:.1f} CPU s")
    for name, each in found["filters"].items():
        times = [1000 / each[subject]["requests_per_cpu_s"] for subject in ("exact", "faiss")]
        print(f"  {name:18} exact {times[0]:7.2f} CPU ms, faiss {times[1]:6.2f}, "
              f"ratio {each['faiss']['ratio_to_exact']:5.1f}, "
              f"recall {each['recall']:.4f}, lowest {each['lowest_recall']:.3f}", flush=True)


# ----- what may be answered


def filters(items: Items) -> dict[str, list[BoolArray]]:
    """Return by name what each state's request allows.

    A share is of the items that lie farthest in a direction, another one for each state: fields
    go with vectors, and what a filter leaves is often not what the user likes best.
    """
    return {
        "none": [everything(items)] * len(items.states_BD),
        "seen": list(unseen(items)),
        "10% at random": list(at_random(items, 0.1)),
        **{f"{share:.1%}".replace(".0%", "%"): list(farthest(items, share))
           for share in (0.1, 0.01, 0.001)},
    }


def everything(items: Items) -> BoolArray:
    """Return all items but the unknown one."""
    allowed = np.ones(len(items.vectors_ID), bool)
    allowed[0] = False
    return allowed


def unseen(items: Items) -> Iterator[BoolArray]:
    """Yield all items but some of those that suit each state best."""
    rng = np.random.default_rng(2)
    for state_D in items.states_BD:
        allowed = everything(items)
        best = ExactIndex(items.vectors_ID).search(state_D, allowed, LIKED)
        allowed[rng.choice(best, min(SEEN, len(best)), replace=False)] = False
        yield allowed


def at_random(items: Items, share: float) -> Iterator[BoolArray]:
    """Yield some of the items."""
    rng = np.random.default_rng(3)
    for _ in items.states_BD:
        yield everything(items) & (rng.random(len(items.vectors_ID), np.float32) < share)


def farthest(items: Items, share: float) -> Iterator[BoolArray]:
    """Yield the items that lie farthest in a direction."""
    rng = np.random.default_rng(4)
    for _ in items.states_BD:
        places_I = items.vectors_ID @ normal(rng, 1, items.vectors_ID.shape[1])[0]
        yield everything(items) & (places_I <= np.quantile(places_I, share))


# ----- vectors


def generate(size: int, width: int = WIDTH, seed: int = 0) -> Items:
    """Return generated items and states."""
    rng = np.random.default_rng(seed)
    spread_D = np.arange(1, width + 1, dtype=np.float32) ** -0.5
    num_clusters = round(math.sqrt(size))
    centres_CD = normal(rng, num_clusters, width) * spread_D
    shares_C = rng.dirichlet(np.full(num_clusters, 0.5))
    vectors_ID = normal(rng, size + 1, width)
    vectors_ID *= 0.5 * spread_D
    vectors_ID += centres_CD[rng.choice(num_clusters, size + 1, p=shares_C)]
    popularity_I = rng.exponential(size=size + 1).astype(np.float32)
    vectors_ID *= (1 + 0.15 * popularity_I)[:, None]
    vectors_ID[:, 0] += 0.5 * popularity_I
    vectors_ID[0] = 0
    states_BD = 0.7 * centres_CD[rng.choice(num_clusters, STATES, p=shares_C)]
    states_BD += 0.7 * spread_D * normal(rng, STATES, width)
    states_BD[:, 0] += 0.7
    return Items(vectors_ID, states_BD)


def normal(rng: np.random.Generator, rows: int, width: int) -> FloatArray:
    """Return standard normal numbers in float32."""
    return rng.standard_normal((rows, width), np.float32)


def read_trained(crm: str, histories: str, item_text: str) -> Items:
    """Return the vectors of a trained CRM and states of its users."""
    facts = storage.read_json(storage.join(crm, FACTS))
    source = SourceConfig.model_validate(facts["source"])
    catalogue = Catalogue.from_table(
        storage.read_table(storage.join(histories, "items.parquet")), source.item_fields
    )
    text = storage.read_tensors(storage.join(item_text, "vectors.safetensors"))["vectors"]
    scorer = CRMScorer.load(crm, catalogue, text)
    users = dict(list(histories_of(read_histories(histories, 0)).items())[:STATES])
    profiles = Profiles.from_table(
        storage.read_table(storage.join(histories, "users.parquet")), source.user_fields, users
    )
    return Items(scorer.item_vectors(), scorer.retrieval_states(
        list(users.values()), [profiles.of(user_id) for user_id in users]
    ))


def multiply(trained: Items, size: int) -> Items:
    """Return as many items as are wanted, each between two trained ones that are neighbours."""
    rng = np.random.default_rng(1)
    known_JD = trained.vectors_ID[1:]
    lengths_J = (known_JD**2).sum(axis=1)
    near_JN = np.argsort(lengths_J - 2 * known_JD @ known_JD.T, axis=1)[:, 1:9]
    first = rng.integers(0, len(known_JD), size + 1)
    second = near_JN[first, rng.integers(0, near_JN.shape[1], size + 1)]
    weights = rng.random((size + 1, 1), np.float32)
    vectors_ID = known_JD[first] * weights + known_JD[second] * (1 - weights)
    _, spreads, directions = np.linalg.svd(known_JD - known_JD.mean(axis=0), full_matrices=False)
    noise_D = (0.15 / math.sqrt(len(known_JD))) * spreads.astype(np.float32)
    vectors_ID += (normal(rng, size + 1, len(noise_D)) * noise_D) @ directions.astype(np.float32)
    vectors_ID[0] = 0
    return Items(vectors_ID.astype(np.float32), trained.states_BD)


if __name__ == "__main__":
    sys.exit(main())
