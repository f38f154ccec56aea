"""Bank training on a tiny model: workers, ZeRO stages, resume after kill -9, frozen base.

A restart within one call is in tests/stages/test_crm.py.
"""

import os
import signal
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import pytest
import torch
from ray.train import WorkerGroupError

from engine import storage
from engine.config import AdapterTrainingConfig, BankConfig, EngineConfig, RunConfig
from engine.errors import ArtifactError
from engine.models.base import load_base_model
from engine.models.personalized import PersonalizedLLM
from engine.stages.trainer import fit
from engine.training.adapter_examples import read_examples
from engine.training.adapter_loop import BatchPlan, adapter_loop, pair_facts
from engine.training.anchor import names_by_part
from engine.training.session import LocalSession, Session
from engine.types import GateInput, Window
from tests.adapter_inputs import NUM_SLATES, TARGET_DIM, USER_DIM, write_inputs
from tests.tiny_llama import tiny_base


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return settings of a training of six steps without dropout."""
    folder = tmp_path_factory.mktemp("adapters")
    config = EngineConfig(
        run=RunConfig(seed=5), base_model=tiny_base(folder / "base"),
        bank=BankConfig(num_adapters=3, rank=2, alpha=4, gate_hidden=7, gate_dropout=0.0),
        adapters=AdapterTrainingConfig(
            max_slates=NUM_SLATES, epochs=2, batch_slates=8, micro_batch_slates=3,
            learning_rate=0.02, gate_learning_rate=0.02, checkpoint_every=2,
        ),
    )
    return {"config": config.settings(), "inputs": write_inputs(folder)}


def changed(world: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    config = {name: dict(values) for name, values in world["config"].items()}
    for name, values in sections.items():
        config[name] |= values
    return {**world, "config": config}


def train(
    settings: dict[str, Any], folder: Path, *, workers: int = 1, loop: Any = adapter_loop
) -> tuple[list[dict[str, float]], storage.Tensors]:
    """Train under Ray; return the curve and the bank."""
    checkpoint = fit(
        loop, settings, artifact=str(folder / "adapters"), num_workers=workers,
        threads_per_worker=1, use_gpu=False, max_failures=0,
    )
    curve = storage.read_json(f"{checkpoint}/curve.json")
    return curve, storage.read_tensors(f"{checkpoint}/bank.safetensors")


def assert_same(left: storage.Tensors, right: storage.Tensors, tolerance: float) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert np.allclose(tensor, right[name], atol=tolerance), name


@pytest.fixture(scope="module")
def reference(
    ray_local: str, world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[dict[str, float]], storage.Tensors]:
    """Return curve and bank of one worker, ZeRO stage 1."""
    return train(world, tmp_path_factory.mktemp("reference"))


def test_loss_falls_and_gates_start_to_differ(reference: Any) -> None:
    curve, _ = reference
    assert len(curve) == 6
    first, second = (
        np.average([point["loss"] for point in epoch], weights=[point["labels"] for point in epoch])
        for epoch in (curve[:3], curve[3:])         # the same slates, in another order
    )
    assert second < first - 0.02
    assert curve[-1]["gate_variation"] > 0
    assert [point["step"] for point in curve] == list(range(6))
    assert [point["epoch"] for point in curve] == [0, 0, 0, 1, 1, 1]
    assert all(0 <= point["pairs_in_order"] <= point["pairs"] for point in curve)


class DyingSession:
    """Kills its worker once, with signal 9, right after the first checkpoint."""

    def __init__(self, session: Session, flag: Path) -> None:
        self.session, self.flag = session, flag
        self.world_rank, self.world_size = session.world_rank, session.world_size

    def progress(self, done: int, total: int) -> None:
        self.session.progress(done, total)

    def resume_folder(self) -> Path | None:
        return self.session.resume_folder()

    def report(self, metrics: dict[str, float], folder: Path | None, name: str | None) -> None:
        self.session.report(metrics, folder, name)
        if metrics["step"] == 4 and self.world_rank == 0 and not self.flag.exists():
            self.flag.write_text("died")
            os.kill(os.getpid(), signal.SIGKILL)


def dying_loop(settings: dict[str, Any], session: Session) -> None:
    """Train with a death in the middle."""
    adapter_loop(settings, DyingSession(session, Path(settings["flag"])))
    assert deepspeed.comm.comm.cdb.shm_comm_op is None      # else a compiler ran


def test_two_workers_killed_and_started_again_learn_what_one_learns_uninterrupted(
    reference: Any, world: dict[str, Any], tmp_path: Path
) -> None:
    """ZeRO 3 against 1; 2 is in tests/stages/test_crm.py."""
    flag = tmp_path / "flag"
    settings = {
        **changed(world, adapters={"num_workers": 2, "zero_stage": 3}), "flag": str(flag)
    }
    with pytest.raises(WorkerGroupError):
        train(settings, tmp_path / "run", loop=dying_loop, workers=2)
    assert flag.read_text() == "died"
    curve, bank = train(settings, tmp_path / "run", loop=dying_loop, workers=2)
    assert [point["step"] for point in curve] == list(range(6))
    for name in ("loss", "tokens", "labels", "pairs"):
        expected = [point[name] for point in reference[0]]
        assert [point[name] for point in curve] == pytest.approx(expected, rel=1e-5), name
    assert_same(bank, reference[1], 1e-4)


class Stopped(Exception):
    """Ends a loop."""


class StoppingSession(LocalSession):
    """Ends the loop after the checkpoint of step 4."""

    def report(self, metrics: dict[str, float], folder: Path | None, name: str | None) -> None:
        super().report(metrics, folder, name)
        if metrics["step"] == 4:
            raise Stopped


def test_a_resumed_training_draws_the_dropout_of_an_uninterrupted_one(
    one_process: None, world: dict[str, Any], tmp_path: Path
) -> None:
    settings = changed(world, bank={"gate_dropout": 0.5})
    adapter_loop(settings, LocalSession(tmp_path / "whole"))
    with pytest.raises(Stopped):
        adapter_loop(settings, StoppingSession(tmp_path / "run"))
    adapter_loop(settings, LocalSession(tmp_path / "run"))
    expected, resumed = (
        storage.read_tensors(str(tmp_path / name / "step_0000006" / "bank.safetensors"))
        for name in ("whole", "run")
    )
    assert_same(resumed, expected, 1e-6)


@pytest.fixture
def night(one_process: None, world: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Return settings of a training that goes on from one of six steps, under an anchor."""
    adapter_loop(world, LocalSession(tmp_path / "parent"))
    parent = str(tmp_path / "parent" / "step_0000006")
    settings = changed(world, night={"anchor": 20.0}, run={"seed": 6})
    return {**settings, "inputs": {**world["inputs"], "parent": parent}}


def learned(
    settings: dict[str, Any], folder: Path, **sections: Any
) -> tuple[list[dict[str, float]], storage.Tensors]:
    session = LocalSession(folder)
    adapter_loop(changed(settings, **sections), session)
    last = str(session.resume_folder())
    return storage.read_json(f"{last}/curve.json"), storage.read_tensors(f"{last}/bank.safetensors")


def with_rates(rate: float, **settings: Any) -> dict[str, Any]:
    names = ("learning_rate", "gate_learning_rate", "readout_learning_rate")
    return {**dict.fromkeys(names, rate), **settings}


def test_a_night_starts_where_its_parent_is_and_an_anchor_keeps_it_there(
    night: dict[str, Any], tmp_path: Path
) -> None:
    parent = storage.read_tensors(str(Path(night["inputs"]["parent"]) / "bank.safetensors"))
    _, still = learned(night, tmp_path / "still", adapters=with_rates(1e-12))
    assert_same(still, parent, 1e-6)
    adapters = with_rates(0.002, epochs=8)
    plain, free = learned(night, tmp_path / "free", adapters=adapters, night={"anchor": 0.0})
    curve, held = learned(night, tmp_path / "held", adapters=adapters, night={"anchor": 1e4})
    for part, names in names_by_part(parent).items():
        far, near = (
            sum(float(((bank[name] - parent[name]) ** 2).sum()) for name in names) ** 0.5
            for bank in (free, held)
        )
        assert near < far / 2, part
    assert curve[0]["anchor"] == 0
    assert curve[1]["anchor"] > 0
    assert all("anchor" not in point for point in plain)


def test_a_resumed_night_is_held_by_its_parent_and_not_by_its_checkpoint(
    night: dict[str, Any], tmp_path: Path
) -> None:
    _, expected = learned(night, tmp_path / "whole")
    with pytest.raises(Stopped):
        adapter_loop(night, StoppingSession(tmp_path / "run"))
    _, resumed = learned(night, tmp_path / "run")
    assert_same(resumed, expected, 1e-6)


def test_an_anchor_counts_once_for_any_number_of_workers_and_micro_batches(
    ray_local: str, night: dict[str, Any], tmp_path: Path
) -> None:
    """Four micro-batches of one worker against two of each of two, ZeRO 1 against 2."""
    expected, one = learned(night, tmp_path / "one")
    two = changed(night, adapters={"num_workers": 2, "zero_stage": 2})
    curve, bank = train(two, tmp_path / "two", workers=2)
    for name in ("anchor", "loss"):
        found = [point[name] for point in curve]
        assert found == pytest.approx([point[name] for point in expected], rel=1e-4), name
    assert_same(bank, one, 1e-4)


@pytest.mark.parametrize("gate", [GateInput.HYBRID])
def test_training_leaves_the_base_weights_equal_bit_for_bit(
    ray_local: str, world: dict[str, Any], tmp_path: Path, gate: GateInput
) -> None:
    """In process: one step on a model whose base weights were copied before."""
    from engine.models.packing import pack
    from engine.models.personalized import stack_states
    from engine.training.adapter_examples import label_matrix

    config = EngineConfig.model_validate(changed(world, bank={"gate": gate.value})["config"])
    inputs = world["inputs"]
    examples = read_examples(inputs["prompt_files"], inputs["state_files"], [Window.BANK])
    tokenizer, base = load_base_model(config.base_model)
    before = {name: p.clone() for name, p in base.named_parameters()}
    model = PersonalizedLLM(base, tokenizer, config.bank, config.prompt, (USER_DIM, TARGET_DIM))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    trained = model.adapter_parameters()
    start = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=0.1)
    for _ in range(2):      # gates have no gradient before B has moved
        batch = pack([e.prompt for e in examples[:4]], pad_id=model.pad_id)
        labels = torch.from_numpy(label_matrix(examples[:4]))
        *_, losses = model(batch, stack_states([e.crm for e in examples[:4]]), labels_BM=labels)
        optimizer.zero_grad()
        losses[batch.is_candidate_BM].mean().backward()
        optimizer.step()
    for name, parameter in before.items():
        kept = [p for n, p in model.named_parameters() if n in frozen]
        assert any(torch.equal(parameter, p) for p in kept if p.shape == parameter.shape), name
    assert len(before) == len(frozen)
    assert all(not torch.equal(start[name], p) for name, p in trained.items() if "b1" not in name)


def test_pairs_in_order_are_counted_and_ties_count_half() -> None:
    labels, logits = np.array([1.0, 0.0, 0.0, 1.0]), np.array([0.3, 0.1, 0.5, 0.5])
    assert pair_facts(labels, logits) == {"pairs": 4.0, "pairs_in_order": 2.5}
    assert pair_facts(np.ones(3), np.zeros(3)) == {"pairs": 0.0, "pairs_in_order": 0.0}


def test_micro_batches_share_out_a_global_batch() -> None:
    config = AdapterTrainingConfig(batch_slates=8, micro_batch_slates=3)
    plan = BatchPlan(config, seed=1, lengths=list(range(20)))
    for step in range(plan.num_steps):
        for world_size in (1, 2, 4):
            shares = [plan.micro_batches(step, rank, world_size) for rank in range(world_size)]
            assert len({tuple(map(len, share)) for share in shares}) == 1
            assert all(len(batch) <= 3 for share in shares for batch in share)
            dealt = sorted(index for share in shares for batch in share for index in batch)
            assert dealt == sorted(plan.indices(step))
    seen = {index for step in range(plan.steps_per_epoch) for index in plan.indices(step)}
    assert seen == set(range(20))


def test_workers_get_about_as_many_tokens_each() -> None:
    lengths = [10, 20, 30, 40, 50, 60, 70, 80]
    plan = BatchPlan(AdapterTrainingConfig(batch_slates=8), seed=1, lengths=lengths)
    for world_size, expected in ((2, 180), (4, 90)):
        shares = [plan.micro_batches(0, rank, world_size) for rank in range(world_size)]
        tokens = [sum(lengths[index] for batch in share for index in batch) for share in shares]
        assert tokens == [expected] * world_size


def test_a_slate_without_crm_state_is_an_error(world: dict[str, Any], tmp_path: Path) -> None:
    inputs = world["inputs"]
    table = storage.read_table(inputs["state_files"][0])
    short = str(tmp_path / "short.parquet")
    storage.write_table(short, table.slice(1))
    with pytest.raises(ArtifactError, match="no CRM state for slate '0-000'"):
        read_examples(inputs["prompt_files"][:1], [short], [Window.BANK])
