"""What a bank's training leaves beside its weights."""

from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import storage
from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.data.schema import part_name
from engine.errors import ConfigError
from engine.models.personalized import STANDARD
from engine.stages import adapters, items
from engine.stages.adapters import TURNED, distance_moved, train_adapters, turn_of_loss
from engine.training.session import LocalSession
from tests.adapter_inputs import write_inputs
from tests.tiny_llama import tiny_base


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


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what `train_adapters` asks to be made: settings and kinds of inputs."""
    found: list[Any] = []

    def make(run: str, kind: str, settings: Any, inputs: Any, write: Any, version: int = 1) -> Mock:
        found.append((settings, inputs))
        return Mock()

    monkeypatch.setattr(adapters, "make", make)
    for name in ("base_model_digest", "forget"):
        monkeypatch.setattr(adapters, name, lambda *_: None)
    return found


def test_a_night_has_a_tenth_of_the_rates_and_a_name_of_its_own(asked: list[Any]) -> None:
    config = EngineConfig.model_validate({"adapters": {"epochs": 2}, "night": {"bank_rate": 0.1}})
    parts = [Mock() for _ in range(4)]
    train_adapters("run", config, *parts[:3])
    train_adapters("run", config, *parts[:3], parent=parts[3])
    (plain, inputs), (night, more) = asked
    assert plain.keys() == {"bank", "adapters", "seed", "dtype", "base_model"}
    assert (inputs, more) == (parts[:3], parts)
    assert night["anchor"] == config.night.anchor
    assert night["adapters"] == plain["adapters"] | {
        "epochs": 1, "learning_rate": pytest.approx(2e-4),
        "gate_learning_rate": pytest.approx(4e-4), "readout_learning_rate": pytest.approx(2e-4),
    }


def test_an_anchor_needs_whole_weights(asked: list[Any]) -> None:
    config = EngineConfig.model_validate({"adapters": {"zero_stage": 3}})
    parts = [Mock() for _ in range(4)]
    train_adapters("run", config, *parts[:3])
    with pytest.raises(ConfigError, match=r"at most 2, or night\.anchor 0"):
        train_adapters("run", config, *parts[:3], parent=parts[3])


def test_the_distance_moved_is_in_lengths_of_the_parent(tmp_path: Path) -> None:
    for name, away in (("parent", 0.0), ("child", 1.0)):
        storage.write_tensors(str(tmp_path / name / "bank.safetensors"), {
            "bank.0.q_proj.a_NRI": np.full((1, 2, 2), 10 + away),
            "bank.0.q_proj.b_NRO": np.full((1, 2, 2), 2.0),
            "user_router.w1_GHD": np.array([3.0, 0.0]), "user_router.b1_GH": np.array([4 + away]),
            "readout.weight": np.array([away]),
        })
    assert distance_moved(str(tmp_path / "child"), str(tmp_path / "parent")) == pytest.approx(
        {"bank_a": 0.1, "bank_b": 0.0, "gates": 0.2, "readout": 1000.0}
    )


def test_a_nights_bank_says_how_far_it_moved_and_belongs_to_the_new_crm(
    one_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(loop: Any, settings: dict[str, Any], *, artifact: str, **resources: Any) -> str:
        session = LocalSession(tmp_path / f"training-{Path(artifact).name}")
        loop(settings, session)
        return str(session.resume_folder())

    monkeypatch.setattr(adapters, "fit", fit)
    files = write_inputs(tmp_path)
    prompts, scores = (Artifact(kind, "key", str(tmp_path), {}) for kind in ("prompts", "scores"))
    for source, kind in (("prompt_files", "prompts"), ("state_files", "scores")):
        for part, uri in enumerate(files[source]):
            storage.copy_file(uri, str(tmp_path / part_name(kind, part)))
    config = EngineConfig.model_validate({
        "base_model": tiny_base(tmp_path / "base").settings(), "histories": {"num_partitions": 2},
        "bank": {"num_adapters": 3, "rank": 2, "alpha": 4, "gate_hidden": 7},
        "adapters": {"batch_slates": 8, "learning_rate": 0.02, "gate_learning_rate": 0.02},
    })
    run = str(tmp_path / "run")
    crms = [Artifact("crm", key, "", {}) for key in ("old", "new")]
    parent = train_adapters(run, config, prompts, crms[0], scores)
    night = train_adapters(run, config, prompts, crms[1], scores, parent=parent)
    assert "moved" not in parent.facts
    assert night.facts["moved"].keys() == {"bank_a", "bank_b", "gates", "readout"}
    assert all(0 < away < 1 for away in night.facts["moved"].values())
    assert storage.read_json(night.path("bank.json"))["crm_key"] == "new"
    assert night.manifest()["inputs"]["bank"] == parent.key
    standard = [storage.read_tensors(bank.path(STANDARD)) for bank in (parent, night)]
    assert standard[0]["scale_D"].tolist() == standard[1]["scale_D"].tolist()
