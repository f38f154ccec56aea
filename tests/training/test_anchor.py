"""The anchor against a dense computation by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from engine.training.anchor import FLOOR, Anchor, names_by_part

NAMES = (
    "bank.0.q_proj.a_NRI", "bank.1.v_proj.a_NRI", "bank.0.q_proj.b_NRO", "user_router.norm.weight",
    "target_router.w1_GHD", "readout.weight", "readout.bias",
)


def parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(4)
    return {
        name: nn.Parameter(torch.randn(number + 2, 3)) for number, name in enumerate(NAMES)
    }


def test_parts_are_a_and_b_of_the_bank_gates_and_readout() -> None:
    assert names_by_part(NAMES) == {
        "bank_a": list(NAMES[:2]), "bank_b": [NAMES[2]], "gates": list(NAMES[3:5]),
        "readout": list(NAMES[5:]),
    }


def test_loss_and_gradient_are_those_of_relative_squared_distances() -> None:
    found = parameters()
    anchor = Anchor(found, weight=0.7)
    assert float(anchor.loss().detach()) == 0
    start = {name: parameter.detach().clone() for name, parameter in found.items()}
    with torch.no_grad():
        for parameter in found.values():
            parameter += torch.randn_like(parameter)
    loss = anchor.loss()
    loss.backward()
    expected = 0.0
    for names in names_by_part(NAMES).values():
        square = np.concatenate([start[name].numpy().ravel() ** 2 for name in names]).sum()
        for name in names:
            away = (found[name] - start[name]).detach().numpy()
            expected += 0.7 * float((away**2).sum()) / square
            np.testing.assert_allclose(
                found[name].grad.numpy(), 2 * 0.7 * away / square, rtol=1e-5, err_msg=name
            )
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("copies", [1, 5])
def test_a_larger_bank_that_moved_as_far_costs_as_much(copies: int) -> None:
    found = {f"bank.{n}.q_proj.a_NRI": nn.Parameter(torch.tensor([1.0, 2.0]))
             for n in range(copies)}
    anchor = Anchor(found, weight=3.0)
    with torch.no_grad():
        for parameter in found.values():
            parameter *= 1.1
    assert float(anchor.loss().detach()) == pytest.approx(3 * 0.1**2, rel=1e-4)


def test_a_part_at_zero_is_measured_by_the_floor() -> None:
    found = {"bank.0.q_proj.b_NRO": nn.Parameter(torch.zeros(4))}
    anchor = Anchor(found, weight=1.0)
    with torch.no_grad():
        found["bank.0.q_proj.b_NRO"] += FLOOR**0.5
    assert float(anchor.loss().detach()) == pytest.approx(1.0)
