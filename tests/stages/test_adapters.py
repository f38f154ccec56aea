"""What a bank's training leaves beside its weights."""

from types import ModuleType
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.stages import adapters, items
from engine.stages.adapters import TURNED, turn_of_loss


def test_a_training_that_leaves_what_it_had_learned_is_told_from_noise() -> None:
    noise = np.random.default_rng(0).normal(0, 0.2, 600)
    falls = np.linspace(1.39, 1.25, 600)
    turns = np.concatenate([falls[:450], np.full(150, 1.43)])
    assert turn_of_loss(falls + noise)[2] < TURNED < turn_of_loss(turns + noise)[2]
    lowest, last, _ = turn_of_loss([*[1.0] * 50, *[0.5] * 25, *[0.75] * 25])
    assert (lowest, last) == (0.5, 0.75)


@given(st.integers(0, 1000))
def test_a_loss_that_only_wavers_does_not_turn(seed: int) -> None:
    losses = np.random.default_rng(seed).normal(1.3, 0.2, 300)
    assert turn_of_loss(losses)[2] < TURNED + 0.5        # 0.4% of such losses pass TURNED itself


def test_a_few_steps_tell_nothing() -> None:
    assert turn_of_loss([1.0]) == (1.0, 1.0, 0.0)
    assert turn_of_loss([1.0, 2.0]) == (1.0, 2.0, 0.0)
    assert turn_of_loss(np.arange(19).tolist())[2] == 0


@pytest.mark.parametrize(("stage", "build", "artifacts"), [
    (items, "embed_items", 1), (adapters, "train_adapters", 3),
])
def test_numbers_of_another_type_of_weights_are_not_taken_for_these(
    stage: ModuleType, build: str, artifacts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` is the same setting on every machine, but not the same type."""
    made: list[Any] = []

    def make(run: str, kind: str, settings: Any, inputs: Any, write: Any, version: int = 1) -> Mock:
        made.append(settings)
        return Mock()

    monkeypatch.setattr("engine.artifacts.make", make)
    monkeypatch.setattr(adapters, "make", make)
    for name in ("check_encoder", "base_model_digest", "forget"):
        monkeypatch.setattr(stage, name, lambda *_: None, raising=False)
    for units in ({"amx_bf16": True}, {}):
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda units=units: units)
        getattr(stage, build)("run", EngineConfig(), *(Mock() for _ in range(artifacts)))
    assert made[0] == {**made[1], "dtype": "bfloat16"}
    assert made[1]["dtype"] == "float32"
