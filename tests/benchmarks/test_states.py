"""benchmarks/quality/states.py: states of candidates, whatever they are batched with."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality.states import aucs_of, judge, order, read_states
from engine.training.adapter_examples import AdapterExample
from engine.types import Window
from tests.models.test_personalized import make_model, make_output, make_prompt
from tests.tiny_llama import tiny_base


def example(name: str, blocks: tuple[int, ...]) -> AdapterExample:
    seed = int(name, 36)
    return AdapterExample(
        name, f"user of {name}", int(Window.BANK), 0, make_prompt(seed, blocks),
        np.arange(len(blocks)) % 2, make_output(seed, len(blocks)),
    )


def test_states_do_not_depend_on_the_batch_and_keep_their_labels(tmp_path: Path) -> None:
    tiny_base(tmp_path)
    model = make_model(tmp_path).float()
    examples = [example("b", (4, 6)), example("a", (5, 3, 8))]
    together = read_states(model, examples)
    apart = [read_states(model, [each]) for each in examples]
    for name in ("answer", "block"):
        assert together[name].shape == (5, model.base.config.hidden_size)
        np.testing.assert_allclose(
            together[name], np.concatenate([each[name] for each in apart]), atol=1e-5
        )
    assert together["labels"].tolist() == [0, 1, 0, 1, 0]
    assert together["slates"].tolist() == [1, 1, 0, 0, 0]
    expected = [logit for each in examples for logit in each.crm.logits_M]
    assert together["crm"].tolist() == pytest.approx(expected)
    assert together["users"].tolist() == ["user of b"] * 2 + ["user of a"] * 3


@pytest.mark.parametrize(("weight", "expected"), [(1.0, 1.0), (0.0, 0.5)])
def test_states_that_hold_the_order_are_found_out(weight: float, expected: float) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(2):
        labels = rng.integers(0, 2, 1200)
        slates = np.repeat(np.arange(300), 4)
        signal = weight * 5 * labels[:, None] + 3 * rng.normal(size=300)[slates][:, None]
        rows.append({
            "block": np.column_stack([signal, rng.normal(size=(1200, 3))]), "labels": labels,
            "slates": slates, "users": slates, "crm": labels + rng.normal(size=1200),
        })
    learned, asked = rows
    found = judge(asked, order(learned, asked, "block", 0.1))
    assert found["alone"]["slate_gauc"] == pytest.approx(expected, abs=0.05)
    gain = found["fused"]["slate_gauc"] - aucs_of(asked, asked["crm"])["slate_gauc"]
    assert gain > 0.1 if weight else abs(gain) < 0.02
