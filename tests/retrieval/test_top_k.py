import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engine.retrieval.top_k import top_k


@given(
    scores=arrays(np.float32, st.integers(0, 30), elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0])),
    k=st.integers(0, 40),
)
def test_top_k_equals_a_full_sort(scores: np.ndarray, k: int) -> None:
    expected = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:k]
    assert top_k(scores, k).tolist() == expected


@given(
    size=st.integers(0, 2_000), levels=st.integers(1, 2_000), k=st.integers(0, 40),
    seed=st.integers(0, 1_000),
)
def test_many_scores_are_ordered_like_few(size: int, levels: int, k: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(-levels, levels, size).astype(np.float32)
    if seed % 2:
        scores.sort()               # the best together: all in the last place of each group
    expected = sorted(range(size), key=lambda place: (-scores[place], place))[:k]
    assert top_k(scores, k).tolist() == expected
