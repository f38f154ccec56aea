"""Blocks behind a prefix that was read before equal the packed prompt (METHOD 10)."""

from pathlib import Path

import numpy as np
import pytest

from engine.types import GateInput, MixingMode
from tests.models.test_personalized import (  # noqa: F401
    BOTH_MODES,
    base_folder,
    make_model,
    make_output,
    make_prompt,
    same,
)


@pytest.mark.parametrize("gate", [GateInput.USER, GateInput.HYBRID])
@BOTH_MODES
def test_blocks_behind_a_prefix_have_the_logits_of_the_packed_prompt(
    base_folder: Path, mixing: MixingMode, gate: GateInput  # noqa: F811
) -> None:
    model = make_model(base_folder, mixing, gate)
    sizes = [(4, 6, 5), (1,), (3, 3, 7, 2, 9)]
    prompts = [make_prompt(s, blocks=b, prefix=5 + 4 * s) for s, b in enumerate(sizes)]
    gates = [model.gates(make_output(s, len(b))) for s, b in enumerate(sizes)]
    packed = model.score(prompts, gates)
    states = model.read_prefixes([prompt.prefix for prompt in prompts], gates)
    behind = model.score_behind(states, [prompt.blocks for prompt in prompts], gates)
    for one, other in zip(packed, behind, strict=True):
        assert same(one, other)
    alone = model.score_behind(states[2:], [prompts[2].blocks[1:4]], [
        gates[2] if gate is GateInput.USER else gates[2][[0, 2, 3, 4]]
    ])
    assert same(alone[0], packed[2][1:4])
    assert not same(behind[0], model.score_behind(
        [states[1]], [prompts[0].blocks], [gates[0]]
    )[0])


def test_states_of_a_prefix_are_those_of_its_own_mix(base_folder: Path) -> None:  # noqa: F811
    model = make_model(base_folder)
    prompt = make_prompt(1)
    one, other = (model.gates(make_output(seed)) for seed in (1, 2))
    first, second, again = model.read_prefixes([prompt.prefix] * 3, [one, other, one])
    assert first.num_tokens == len(prompt.prefix)
    assert first.num_bytes == sum(2 * key.nbytes for key in first.keys)
    values = [each.values[-1].numpy() for each in (first, second, again)]
    np.testing.assert_allclose(values[0], values[2], rtol=1e-5)
    assert not np.allclose(values[0], values[1], rtol=1e-3)
