"""The local session, and the scale of a distributed loss."""

import pickle
from pathlib import Path

import pytest
import torch

from engine.training.engines import linear_schedule
from engine.training.session import LocalSession, global_sum, share_of_global_mean


def test_a_local_session_resumes_from_the_newest_checkpoint(tmp_path: Path) -> None:
    draft, kept = tmp_path / "draft", tmp_path / "kept"
    draft.mkdir()
    kept.mkdir()
    session = LocalSession(kept)
    assert session.resume_folder() is None
    for step in (1, 2):
        (draft / "state").write_text(str(step))
        session.report({"loss": 1.0 / step}, draft, f"step_{step}")
    session.report({"loss": 0.1}, None, None)
    again = LocalSession(kept).resume_folder()
    assert again is not None
    assert (again / "state").read_text() == "2"
    assert [row["loss"] for row in session.metrics] == [1.0, 0.5, 0.1]


def test_a_sum_over_one_process_is_the_value() -> None:
    assert global_sum(2.5) == 2.5


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (2, 1), (2, 3)])
def test_mean_of_gradients_over_processes_and_steps_is_that_of_the_global_mean(
    world_size: int, accumulation: int
) -> None:
    shares = world_size * accumulation
    x = torch.arange(1.0, 13.0)
    weight = torch.tensor(2.0, requires_grad=True)
    ((weight * x) ** 2).mean().backward()
    expected = weight.grad
    unequal = torch.tensor_split(x, [1, 3, 6, 8, 11][: shares - 1])     # shares of unequal size
    total = torch.tensor(0.0)
    for part in unequal:
        weight.grad = None
        share_of_global_mean(
            ((weight * part) ** 2).sum(), 12, world_size=world_size, accumulation=accumulation
        ).backward()
        total += weight.grad / shares          # DeepSpeed's mean over processes and accumulation
    torch.testing.assert_close(total, expected)


def test_the_schedule_warms_up_and_decays_to_just_above_zero() -> None:
    factor = linear_schedule(10, 0.2)
    assert [round(factor(step), 3) for step in (0, 1, 2, 9, 10)] == [0.333, 0.667, 1.0, 0.125, 0.0]
    assert linear_schedule(4)(0) == 1.0


def test_checkpoint_facts_are_plain_values(tmp_path: Path) -> None:
    assert pickle.loads(pickle.dumps(LocalSession(tmp_path))).world_size == 1
