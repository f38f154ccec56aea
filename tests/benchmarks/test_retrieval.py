"""Generated items and filters of the race of searches."""

import numpy as np

from benchmarks.retrieval import SEEN, filters, generate, measure, multiply
from engine.retrieval.index import ExactIndex


def test_filters_leave_what_their_names_say() -> None:
    items = generate(4_000)
    found = filters(items)
    for name, share in (("10%", 0.1), ("1%", 0.01), ("0.1%", 0.001)):
        for allowed in found[name]:
            assert not allowed[0]
            assert abs(allowed.sum() - 4_000 * share) <= 2
    assert {int(allowed.sum()) for allowed in found["none"]} == {4_000}
    assert {int(allowed.sum()) for allowed in found["seen"]} == {4_000 - SEEN}
    assert 0.08 < np.mean([allowed.mean() for allowed in found["10% at random"]]) < 0.12


def test_a_search_of_all_cells_has_full_recall_and_one_of_few_less() -> None:
    items = generate(3_000)
    whole = measure(items, probes=1_000, limit=20, rounds=1)
    part = measure(items, probes=1, limit=20, rounds=1)
    assert {each["recall"] for each in whole["filters"].values()} == {1.0}
    assert part["filters"]["none"]["lowest_recall"] < part["filters"]["none"]["recall"] < 1
    assert part["filters"]["none"]["faiss"]["rounds"] == 1


def test_multiplied_items_lie_like_the_trained_ones() -> None:
    trained = generate(500)
    many = multiply(trained, 2_000)
    assert many.vectors_ID.shape == (2_001, 64)
    assert many.vectors_ID.dtype == np.float32
    allowed = np.ones(2_001, bool)
    for state in many.states_BD:
        best = ExactIndex(many.vectors_ID).search(state, allowed, 20)
        top = ExactIndex(trained.vectors_ID).search(state, allowed[:501], 20)
        ratio = (many.vectors_ID[best] @ state).mean() / (trained.vectors_ID[top] @ state).mean()
        assert 0.7 < ratio < 1.5
