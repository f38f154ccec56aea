"""Losses of the CRM: by hand and against a full softmax."""

import numpy as np
import torch

from engine.models.crm import CRMTensors
from engine.training.crm_loop import Negatives, crm_losses

ITEMS = 5


def found(own: list[float], drawn: list[list[float]], logits: list[float]) -> CRMTensors:
    blank = torch.zeros(len(logits), 1)
    return CRMTensors(
        torch.tensor(logits), blank, blank, blank, torch.tensor(own), torch.tensor(drawn)
    )


def test_negatives_follow_the_power_of_popularity_and_are_the_same_everywhere() -> None:
    negatives = Negatives.of(np.array([0.0, 16, 1, 0, 81]), 0.5)
    assert negatives.items_N.tolist() == [1, 2, 4]
    np.testing.assert_allclose(
        np.exp(negatives.log_q_I[[1, 2, 4]]), [4 / 14, 1 / 14, 9 / 14], rtol=1e-6
    )
    drawn = negatives.draw(20_000, seed=3, step=7)
    np.testing.assert_allclose(
        [(drawn == item).mean() for item in (1, 2, 4)], [4 / 14, 1 / 14, 9 / 14], atol=0.02
    )
    np.testing.assert_array_equal(drawn, negatives.draw(20_000, seed=3, step=7))
    assert (drawn != negatives.draw(20_000, seed=3, step=8)).any()


def test_losses_are_sums_and_only_positives_retrieve() -> None:
    labels, items = torch.tensor([1.0, 0.0]), torch.tensor([1, 2])
    ctr, retrieval, positives = crm_losses(
        found([2.0, 9.0], [[1.0], [9.0]], [0.0, 3.0]), labels, items, torch.tensor([4]),
        torch.zeros(ITEMS),
    )
    np.testing.assert_allclose(float(ctr), np.log(2) + np.log1p(np.exp(3)), rtol=1e-6)
    np.testing.assert_allclose(float(retrieval), np.log(1 + np.exp(-1)), rtol=1e-6)
    assert positives == 1


def test_a_drawn_copy_of_the_own_item_is_left_out() -> None:
    _, retrieval, _ = crm_losses(
        found([2.0], [[2.0, 1.0]], [0.0]), torch.tensor([1.0]), torch.tensor([3]),
        torch.tensor([3, 4]), torch.zeros(ITEMS),
    )
    np.testing.assert_allclose(float(retrieval), np.log(1 + np.exp(-1)), rtol=1e-6)


def test_popular_draws_are_corrected_for_their_chance() -> None:
    """E[sum over draws of exp(score - log q)] is draws times the sum over all items."""
    scores = torch.tensor([0.0, 1.0, -0.5, 0.3, 2.0])
    negatives = Negatives.of(np.array([0.0, 40, 4, 10, 1]), 1.0)
    drawn = torch.as_tensor(negatives.draw(200_000, seed=1, step=1))
    log_q = torch.as_tensor(negatives.log_q_I)
    estimate = torch.exp(scores[drawn] - log_q[drawn]).mean()
    torch.testing.assert_close(estimate, torch.exp(scores[1:]).sum(), rtol=0.02, atol=0)


def test_a_batch_without_positives_has_no_retrieval_loss() -> None:
    ctr, retrieval, positives = crm_losses(
        found([1.0], [[2.0]], [0.0]), torch.tensor([0.0]), torch.tensor([1]), torch.tensor([2]),
        torch.zeros(ITEMS),
    )
    assert float(retrieval) == 0
    assert positives == 0
    assert torch.isfinite(ctr)
