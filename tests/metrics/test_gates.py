"""Statistics of gates against slow references and examples by hand."""

import numpy as np
import pytest

from engine.errors import DataError
from engine.metrics.gates import gate_statistics, pairwise_variation


def random_gates(seed: int, users: int = 7, gates: int = 5, adapters: int = 4):
    return np.random.default_rng(seed).dirichlet(np.ones(adapters), size=(users, gates))


def test_variation_equals_a_loop_over_all_pairs():
    gates = random_gates(1)
    pairs = [(i, j) for i in range(7) for j in range(i)]
    slow = [
        np.mean([np.abs(gates[i, g] - gates[j, g]).sum() / 2 for i, j in pairs]) for g in range(5)
    ]
    assert pairwise_variation(gates) == pytest.approx(np.array(slow))
    assert gate_statistics(gates).variation == pytest.approx(np.mean(slow))


def test_equal_users_do_not_vary_and_opposite_users_vary_by_one():
    equal = np.repeat(random_gates(2, users=1), 3, axis=0)
    assert gate_statistics(equal).variation == pytest.approx(0, abs=1e-12)
    opposite = np.eye(2)[:, None, :]
    statistics = gate_statistics(opposite)
    assert statistics.variation == 1
    assert statistics.entropy == 0
    assert statistics.load_K == (0.5, 0.5)
    assert statistics.load_entropy_share == pytest.approx(1)


def test_uniform_gates_have_full_entropy():
    statistics = gate_statistics(np.full((3, 2, 8), 1 / 8))
    assert statistics.entropy == pytest.approx(np.log(8))
    assert statistics.entropy_share == pytest.approx(1)
    assert statistics.spread == 0


def test_one_user_and_one_adapter_are_allowed():
    statistics = gate_statistics(np.ones((1, 2, 1)))
    assert (statistics.variation, statistics.entropy_share) == (0, 0)


def test_gates_of_a_wrong_shape_are_refused():
    with pytest.raises(DataError, match="shape"):
        gate_statistics(np.ones((3, 4)))
