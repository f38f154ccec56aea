"""The language model's sample: reference scores, and whose gates a user borrows."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import BankConfig, EngineConfig, PromptConfig
from engine.models.base import load_base_model
from engine.models.personalized import PersonalizedLLM
from engine.stages import scores
from engine.stages.scores import COLUMNS, PromptScorer, borrowed, derange
from engine.training.adapter_examples import AdapterExample
from engine.types import CRMOutput, GateInput, SlatePrompt, Window
from tests.tiny_llama import tiny_base

USER_DIM, TARGET_DIM = 4, 3


def example(number: int, user: str, window: Window, size: int = 2) -> AdapterExample:
    draw = np.random.default_rng(number)
    crm = CRMOutput(
        draw.normal(size=size).astype(np.float32), draw.normal(size=USER_DIM).astype(np.float32),
        draw.normal(size=(size, TARGET_DIM)).astype(np.float32),
        np.zeros((size, 0), np.int32), np.zeros((size, 0), np.float32),
    )
    prompt = SlatePrompt(draw.integers(5, 300, 7), [draw.integers(5, 300, 4) for _ in range(size)])
    labels = np.ones(size, np.int8)
    return AdapterExample(f"s{number}", user, window, 0, prompt, labels, crm)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(0, 1000))
def test_nobody_keeps_its_own_gates_if_there_is_another_user(users: list[int], seed: int) -> None:
    examples = [example(n, f"u{user}", Window.TEST) for n, user in enumerate(users)]
    donors = derange(examples, seed)
    assert donors == derange(examples, seed)
    for own, donor in zip(examples, donors, strict=True):
        assert (examples[donor].user_id == own.user_id) == (len(set(users)) == 1)


@pytest.mark.parametrize("gate", [GateInput.USER, GateInput.HYBRID])
def test_gates_that_read_the_user_borrow_the_user_alone(gate: GateInput) -> None:
    own, donor = example(0, "a", Window.TEST, 3).crm, example(1, "b", Window.TEST, 2).crm
    found = borrowed(own, donor, gate)
    np.testing.assert_array_equal(found.logits_M, own.logits_M)
    np.testing.assert_array_equal(found.user_state_D, donor.user_state_D)
    np.testing.assert_array_equal(found.target_states_MD, own.target_states_MD)


def test_target_gates_borrow_the_donors_candidates_and_wrap_round() -> None:
    own, donor = example(0, "a", Window.TEST, 3).crm, example(1, "b", Window.TEST, 2).crm
    found = borrowed(own, donor, GateInput.TARGET)
    np.testing.assert_array_equal(found.logits_M, own.logits_M)
    np.testing.assert_array_equal(found.target_states_MD, donor.target_states_MD[[0, 1, 0]])


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """Return base model settings and a bank whose B is not zero."""
    folder = tmp_path_factory.mktemp("bank")
    base = tiny_base(folder / "base")
    tokenizer, model = load_base_model(base)
    personalized = PersonalizedLLM(
        model, tokenizer, BankConfig(num_adapters=3, rank=2), PromptConfig(), (USER_DIM, TARGET_DIM)
    )
    draw = np.random.default_rng(0)
    names = {id(p): name for name, p in personalized.named_parameters()}
    weights = {
        names[id(p)]: draw.normal(size=tuple(p.shape)).astype(np.float32)
        for p in personalized.adapter_parameters().values()
    }
    personalized.save(str(folder), weights, "crm-key", PromptConfig())
    return base, str(folder)


def score(bank: tuple[Any, str], references: tuple[str, ...], monkeypatch: Any) -> Any:
    monkeypatch.setattr(scores.ray, "get", lambda value: value)
    examples = [example(0, "a", Window.VALIDATION), example(1, "a", Window.TEST),
                example(2, "b", Window.TEST)]
    config = EngineConfig.model_validate({
        "base_model": bank[0].settings(), "evaluation": {"references": references},
    })
    scorer = PromptScorer(config, bank[1], examples, derange(examples, 1))      # type: ignore[arg-type]
    rows = scorer({"numbers": [2, 0, 1]})
    return {row["number"]: np.frombuffer(row["logits"], np.float32).reshape(-1, len(COLUMNS))
            for row in rows}


def test_references_are_scored_on_test_and_only_where_asked_for(
    bank: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    every = score(bank, ("zero_shot", "shuffled"), monkeypatch)
    assert not np.isnan(every[1]).any()
    assert not np.isnan(every[2]).any()
    for number in (1, 2):
        assert len(np.unique(every[number].round(4))) == every[number].size     # none is another
    assert np.isnan(every[0][:, 1:]).all()
    for references in ((), ("zero_shot",), ("shuffled",)):
        found = score(bank, references, monkeypatch)
        for number, logits in found.items():
            for place, name in enumerate(COLUMNS):
                asked = place == 0 or name.removesuffix("_logit") in references
                expected = every[number][:, place] if asked else np.nan
                np.testing.assert_array_equal(logits[:, place], expected)


def test_a_user_borrows_the_gates_that_the_donor_has(
    bank: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two users on a circle borrow from each other: the shuffled logit is the donor's mix."""
    shuffled = score(bank, ("shuffled",), monkeypatch)
    base, folder = bank
    model = PersonalizedLLM.load(base, folder)
    own, donor = example(1, "a", Window.TEST), example(2, "b", Window.TEST)
    [expected] = model.score([own.prompt], [model.gates(donor.crm)])
    np.testing.assert_allclose(shuffled[1][:, COLUMNS.index("shuffled_logit")], expected, atol=1e-5)
