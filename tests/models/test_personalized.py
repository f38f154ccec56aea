"""METHOD section 2 on a whole (tiny, random) model: initial state, routing, caching, order."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.config import BankConfig, PromptConfig
from engine.errors import ArtifactError
from engine.models.base import load_base_model
from engine.models.lora import Gates
from engine.models.packing import pack
from engine.models.personalized import STANDARD, PersonalizedLLM, pair_losses, stack_states
from engine.types import CRMOutput, FloatArray, GateInput, MixingMode, SlatePrompt
from tests.tiny_llama import tiny_base

USER_DIM, TARGET_DIM = 6, 9
BOTH_MODES = pytest.mark.parametrize("mixing", list(MixingMode))
ALL_GATES = pytest.mark.parametrize("gate", list(GateInput))


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_base(folder)
    return folder


def make_model(
    folder: Path,
    mixing: MixingMode = MixingMode.SUM_OF_PRODUCTS,
    gate: GateInput = GateInput.USER,
    *,
    trained: bool = True,
) -> PersonalizedLLM:
    """Return a model in float64 where it allows that; `trained`: B and gates have moved."""
    torch.manual_seed(11)
    tokenizer, base = load_base_model(tiny_base(folder))
    config = BankConfig(num_adapters=5, rank=3, alpha=6, mixing=mixing, gate=gate, gate_hidden=7)
    model = PersonalizedLLM(base, tokenizer, config, PromptConfig(), (USER_DIM, TARGET_DIM))
    model.double().eval()
    if trained:
        with torch.no_grad():
            for name, parameter in model.adapter_parameters().items():
                if "b_NRO" in name or "router.w" in name or "readout" in name:
                    parameter.copy_(torch.randn_like(parameter))
    return model


def make_prompt(seed: int, blocks: Sequence[int] = (4, 6, 5), prefix: int = 9) -> SlatePrompt:
    draw = np.random.default_rng(seed)
    ids = [draw.integers(5, 300, size) for size in (prefix, *blocks)]
    return SlatePrompt(ids[0], ids[1:])


def make_output(seed: int, candidates: int = 3) -> CRMOutput:
    draw = np.random.default_rng(1000 + seed)
    none = np.zeros((candidates, 0))
    return CRMOutput(
        draw.normal(size=candidates), draw.normal(size=USER_DIM),
        draw.normal(size=(candidates, TARGET_DIM)), none.astype(int), none,
    )


def with_blocks(prompt: SlatePrompt, output: CRMOutput, gate: GateInput) -> tuple[
    list[SlatePrompt], list[CRMOutput]
]:
    """Return a slate in the form that its gate allows: whole, or one prompt per candidate."""
    if gate is not GateInput.TARGET:
        return [prompt], [output]
    singles = [CRMOutput(
        output.logits_M[i : i + 1], output.user_state_D, output.target_states_MD[i : i + 1],
        output.behaviors_MS[i : i + 1], output.attention_MS[i : i + 1],
    ) for i in range(len(prompt.blocks))]
    return [SlatePrompt(prompt.prefix, [block]) for block in prompt.blocks], singles


def score_one(model: PersonalizedLLM, prompt: SlatePrompt, output: CRMOutput) -> FloatArray:
    prompts, outputs = with_blocks(prompt, output, model.config.gate)
    gates = [model.gates(part) for part in outputs]
    return np.concatenate(model.score(prompts, gates))


def same(left: FloatArray, right: FloatArray) -> bool:
    """Compare logits; transformers' own RMSNorm works in float32, so 64 bits do not survive it."""
    return np.allclose(left, right, rtol=1e-4, atol=1e-5)


# 3

@ALL_GATES
@BOTH_MODES
def test_a_fresh_bank_equals_the_frozen_model_and_its_gates_have_no_gradient(
    base_folder: Path, mixing: MixingMode, gate: GateInput
) -> None:
    model = make_model(base_folder, mixing, gate, trained=False)
    prompts, outputs = with_blocks(make_prompt(1), make_output(1), gate)
    batch = pack(prompts, pad_id=model.pad_id)
    logits, *_ = model(batch, stack_states(outputs))
    alone = model.answer_logits(model.hidden_states(batch, None), batch)
    assert torch.equal(logits, alone)
    logits.sum().backward()
    for name, parameter in model.adapter_parameters().items():
        assert parameter.grad is not None
        moves = bool((parameter.grad != 0).any())
        assert moves == ("b_NRO" in name or "readout" in name), name


# 7

@ALL_GATES
@BOTH_MODES
def test_permuting_adapters_with_their_gates_changes_nothing(
    base_folder: Path, mixing: MixingMode, gate: GateInput
) -> None:
    model = make_model(base_folder, mixing, gate)
    before = score_one(model, make_prompt(2), make_output(2))
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        for name, parameter in model.adapter_parameters().items():
            if name.startswith("bank."):
                parameter.copy_(parameter[order])
            elif name.endswith(("w2_GNH", "b2_GN")):
                parameter.copy_(parameter[:, order])
    assert same(before, score_one(model, make_prompt(2), make_output(2)))


# 8

@BOTH_MODES
def test_a_batch_of_users_equals_each_alone_in_any_order_and_from_two_threads(
    base_folder: Path, mixing: MixingMode
) -> None:
    model = make_model(base_folder, mixing, GateInput.USER)
    prompts = [make_prompt(s, prefix=5 + 3 * s, blocks=(3, 4 + s)) for s in range(5)]
    gates = [model.gates(make_output(s, 2)) for s in range(5)]
    alone = [model.score([p], [g])[0] for p, g in zip(prompts, gates, strict=True)]
    together = model.score(prompts, gates)
    backwards = model.score(prompts[::-1], gates[::-1])[::-1]
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))
    assert all(same(a, b) for a, b in zip(alone, backwards, strict=True))
    work = list(zip(prompts, gates, strict=True)) * 6
    with ThreadPoolExecutor(2) as pool:
        threaded = list(pool.map(lambda pair: model.score([pair[0]], [pair[1]])[0], work))
    assert all(same(a, b) for a, b in zip(alone * 6, threaded, strict=True))
    assert not same(alone[0], model.score([prompts[0]], [gates[1]])[0])


# 9

def prefix_states(model: PersonalizedLLM, prompt: SlatePrompt, output: CRMOutput) -> torch.Tensor:
    batch = pack([prompt], pad_id=model.pad_id)
    weights = model.weights(stack_states([output]))
    decoder = model.base.get_decoder()
    hidden = decoder(
        input_ids=batch.input_ids_BT, attention_mask=batch.mask_B1TT,
        position_ids=batch.positions_BT, use_cache=False, gates=model.segment_gates(weights, batch),
    ).last_hidden_state
    return hidden[0, : len(prompt.prefix)]


@ALL_GATES
@torch.no_grad()
def test_prefix_states_ignore_the_candidate_unless_the_gate_reads_it(
    base_folder: Path, gate: GateInput
) -> None:
    model = make_model(base_folder, gate=gate)
    prompt, output, other = make_prompt(3, blocks=(4,)), make_output(3, 1), make_output(4, 1)
    swapped = CRMOutput(
        output.logits_M, output.user_state_D, other.target_states_MD, output.behaviors_MS,
        output.attention_MS,
    )
    changed = SlatePrompt(prompt.prefix, [make_prompt(5).blocks[1]])
    first = prefix_states(model, prompt, output)
    second = prefix_states(model, changed, swapped)
    assert torch.allclose(first, second, atol=1e-5) == (gate is not GateInput.TARGET)


def test_a_hybrid_answer_changes_with_the_candidates_own_mix(base_folder: Path) -> None:
    model = make_model(base_folder, gate=GateInput.HYBRID)
    prompt, output = make_prompt(6), make_output(6)
    moved = output.target_states_MD.copy()
    moved[1] = -moved[1]
    changed = CRMOutput(
        output.logits_M, output.user_state_D, moved, output.behaviors_MS, output.attention_MS
    )
    before, after = score_one(model, prompt, output), score_one(model, prompt, changed)
    assert same(before[[0, 2]], after[[0, 2]])
    assert not np.isclose(before[1], after[1], rtol=1e-4)


# 10

@pytest.mark.parametrize("gate", [GateInput.USER, GateInput.HYBRID])
@BOTH_MODES
def test_padding_side_packing_and_batching_do_not_change_a_score(
    base_folder: Path, mixing: MixingMode, gate: GateInput
) -> None:
    model = make_model(base_folder, mixing, gate)
    prompts = [make_prompt(7), make_prompt(8, blocks=(7, 2), prefix=20)]
    outputs = [make_output(7), make_output(8, 2)]
    packed = model.score(prompts, [model.gates(output) for output in outputs])
    for prompt, output, scores in zip(prompts, outputs, packed, strict=True):
        assert same(score_one(model, prompt, output), scores)
        for slot, block in enumerate(prompt.blocks):
            single = CRMOutput(
                output.logits_M[[slot]], output.user_state_D, output.target_states_MD[[slot]],
                output.behaviors_MS[[slot]], output.attention_MS[[slot]],
            )
            apart = model.score([SlatePrompt(prompt.prefix, [block])], [model.gates(single)])[0]
            assert same(apart, scores[[slot]])
    for side in ("left", "right"):
        batch = pack(prompts, pad_id=model.pad_id, side=side)   # type: ignore[arg-type]
        logits, *_ = model(batch, stack_states(outputs))
        found = logits.detach().numpy()[batch.is_candidate_BM.numpy()]
        assert same(found, np.concatenate(packed))


def test_a_packed_block_equals_the_plain_causal_sequence(base_folder: Path) -> None:
    """Our masks and positions against transformers' own, without any of ours."""
    model = make_model(base_folder)
    prompt = make_prompt(9)
    packed = model.score([prompt], None)[0]
    for slot, block in enumerate(prompt.blocks):
        ids = torch.from_numpy(np.concatenate([prompt.prefix, block]))[None]
        logits_V = model.base(input_ids=ids).logits[0, -1]
        odds = logits_V[model.answers.positive] - logits_V[model.answers.negative]
        assert np.isclose(float(odds), packed[slot], rtol=1e-4, atol=1e-5)


# training and files

@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_does_not_change_gradients(
    base_folder: Path, checkpointing: bool
) -> None:
    model = make_model(base_folder, gate=GateInput.HYBRID)
    reference = make_model(base_folder, gate=GateInput.HYBRID)
    model.train()
    reference.train()
    for m in (model, reference):
        for router in (m.user_router, m.target_router):
            assert router is not None
            router.dropout.p = 0.0
    if checkpointing:
        model.base.activation_checkpointing_enable({"use_reentrant": False})
    batch = pack([make_prompt(1), make_prompt(2)], pad_id=model.pad_id)
    states = stack_states([make_output(1), make_output(2)])
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    for m in (model, reference):
        m(batch, states, labels_BM=labels)[-1].sum().backward()
    for left, right in zip(
        model.adapter_parameters().values(), reference.adapter_parameters().values(), strict=True
    ):
        assert left.grad is not None
        assert right.grad is not None
        assert torch.allclose(left.grad, right.grad, rtol=1e-4, atol=1e-6)


def test_the_two_answer_loss_is_the_cross_entropy_of_the_two_logits(base_folder: Path) -> None:
    model = make_model(base_folder)
    model.readout = None                # the vocabulary knows the answer's state alone
    batch, states = pack([make_prompt(1)], pad_id=model.pad_id), stack_states([make_output(1)])
    labels = torch.tensor([[1.0, 0.0, 1.0]])
    logits = model(batch, states)[0]
    losses = model(batch, states, labels_BM=labels)[-1]
    pair = torch.stack([torch.zeros_like(logits), logits], dim=-1).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(pair, labels.long().flatten(), reduction="none")
    assert torch.allclose(losses.flatten(), expected)
    whole = model(batch, states, labels_BM=labels, loss="vocabulary")[-1]
    assert (whole > losses).all()       # the vocabulary has more ways to be wrong


def test_the_loss_of_pairs_is_that_of_a_loop_over_them(base_folder: Path) -> None:
    model = make_model(base_folder)
    batch = pack([make_prompt(1), make_prompt(2)], pad_id=model.pad_id)
    states = stack_states([make_output(1), make_output(2)])
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])     # the second: nothing to order
    logits, _, losses = model(batch, states, labels_BM=labels, loss="pairs")
    log_odds = torch.nn.functional.logsigmoid
    first, middle, last = (float(logit) for logit in logits[0].detach())
    pairs = -log_odds(torch.tensor([first - middle, last - middle]))
    assert losses.shape == labels.shape
    assert torch.allclose(losses[0], torch.stack([pairs[0], pairs.mean(), pairs[1]]))
    assert (losses[1] == 0).all()
    shifted = model(batch, states, labels_BM=labels, loss="pairs",
                    offsets_BM=torch.tensor([[3.0] * 3, [-1.0] * 3]))[-1]
    assert torch.allclose(shifted, losses, atol=1e-6)             # a generous user changes nothing
    answers, joint = (model(batch, states, labels_BM=labels, loss=name)[-1]
                      for name in ("answers", "joint"))
    assert torch.allclose(joint, answers + losses)


def test_padding_is_no_partner_of_a_pair() -> None:
    logits, labels = torch.tensor([[0.5, -0.5, 9.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    present = torch.tensor([[True, True, False]])
    loss = float(torch.nn.functional.softplus(torch.tensor(-1.0)))
    assert pair_losses(logits, labels, present).tolist() == [pytest.approx([loss, loss, 0.0])]


def test_an_offset_leaves_only_what_it_does_not_explain_to_learn(base_folder: Path) -> None:
    model = make_model(base_folder)
    batch, states = pack([make_prompt(1)], pad_id=model.pad_id), stack_states([make_output(1)])
    labels = torch.tensor([[1.0, 0.0, 1.0]])
    logits = model(batch, states)[0]
    offsets = torch.tensor([[20.0, -3.0, 0.0]]) - logits.detach() * torch.tensor([[1.0, 0.0, 0.0]])
    losses = model(batch, states, labels_BM=labels, offsets_BM=offsets)[-1]
    own = model(batch, states, labels_BM=labels)[-1]
    assert losses[0, 0] < 1e-6                              # right already: nothing to learn
    odds = torch.exp(logits[0, 1].detach() - 3.0)
    assert float(losses[0, 1].detach()) == pytest.approx(float(torch.log1p(odds)), rel=1e-3)
    assert losses[0, 2] == own[0, 2]


def test_a_saved_bank_comes_back_and_a_foreign_one_is_refused(
    base_folder: Path, tmp_path: Path
) -> None:
    model = make_model(base_folder).float()
    model.standardise_readout([[make_prompt(2)], [make_prompt(3), make_prompt(4, blocks=(5,))]])
    weights = {n: p.detach().numpy() for n, p in model.named_parameters() if p.requires_grad}
    model.save(str(tmp_path), weights, "crm-key", PromptConfig())
    loaded = PersonalizedLLM.load(tiny_base(base_folder), str(tmp_path))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    prompt, output = make_prompt(1), make_output(1)
    assert np.allclose(score_one(model, prompt, output), score_one(loaded, prompt, output), 1e-5)
    wide = tmp_path / "wide"
    with pytest.raises(ArtifactError, match="needs"):
        PersonalizedLLM.load(tiny_base(wide, hidden_size=48), str(tmp_path))


def test_a_bank_goes_on_from_a_saved_one_as_it_was_trained(
    base_folder: Path, tmp_path: Path
) -> None:
    model = make_model(base_folder).float()
    model.standardise_readout([[make_prompt(2)], [make_prompt(3)]])
    weights = {n: p.detach().numpy() for n, p in model.named_parameters() if p.requires_grad}
    model.save(str(tmp_path), weights, "crm-key", PromptConfig())
    for has_standard in (True, False):
        if not has_standard:                                # as older versions wrote it
            (tmp_path / STANDARD).unlink()
        child = make_model(base_folder, trained=False).float()
        child.standardise_readout([[make_prompt(5)]])
        child.start_from(str(tmp_path))
        prompt, output = make_prompt(1), make_output(1)
        assert np.allclose(score_one(model, prompt, output), score_one(child, prompt, output), 1e-5)
        is_same = torch.equal(model.readout.scale_D, child.readout.scale_D)
        assert is_same == has_standard
        for name, parameter in child.adapter_parameters().items():
            found, expected = parameter.detach(), model.adapter_parameters()[name].detach()
            if not name.startswith("readout"):
                assert torch.equal(found, expected), name
            elif has_standard:
                torch.testing.assert_close(found, expected)


def test_a_parent_of_other_states_or_settings_is_refused(
    base_folder: Path, tmp_path: Path
) -> None:
    model = make_model(base_folder).float()
    weights = {n: p.detach().numpy() for n, p in model.named_parameters() if p.requires_grad}
    model.save(str(tmp_path), weights, "crm-key", PromptConfig())
    tokenizer, base = load_base_model(tiny_base(base_folder))
    wide = PersonalizedLLM(base, tokenizer, model.config, PromptConfig(), (8, TARGET_DIM))
    with pytest.raises(ArtifactError, match=r"widths \[6, 9\], the CRM gives \[8, 9\]"):
        wide.start_from(str(tmp_path))
    for changes, message in (({"alpha": 7.0, "gate_dropout": 0.5}, "alpha 6.0, now 7.0$"),
                             ({"rank": 4}, "rank 3, now 4$")):
        tokenizer, base = load_base_model(tiny_base(base_folder))
        other = model.config.model_copy(update=changes)
        with pytest.raises(ArtifactError, match=message):
            PersonalizedLLM(
                base, tokenizer, other, PromptConfig(), (USER_DIM, TARGET_DIM)
            ).start_from(str(tmp_path))


def test_the_readout_is_standardised_on_the_candidates_states_of_the_frozen_model(
    base_folder: Path
) -> None:
    model = make_model(base_folder, trained=False)
    prompts = [make_prompt(2), make_prompt(3, blocks=(5,))]
    model.standardise_readout([[prompt] for prompt in prompts])
    means = []
    for prompt in prompts:
        for block in prompt.blocks:
            alone = SlatePrompt(prompt.prefix, [block])
            hidden_TD = model.hidden_states(pack([alone], pad_id=model.pad_id), None)[0]
            mean_D = hidden_TD[len(prompt.prefix) :].mean(0)
            means.append(mean_D / mean_D.square().mean().sqrt())
    assert model.readout is not None
    torch.testing.assert_close(model.readout.mean_D, torch.stack(means).mean(0))


def test_one_row_of_gates_is_needed_where_candidates_share_a_prefix(base_folder: Path) -> None:
    model = make_model(base_folder, gate=GateInput.TARGET)
    batch = pack([make_prompt(1)], pad_id=model.pad_id)
    with pytest.raises(ValueError, match="own prompt"):
        model.segment_gates(model.weights(stack_states([make_output(1)])), batch)


def test_segment_gates_of_one_segment_are_not_expanded_over_tokens(base_folder: Path) -> None:
    model = make_model(base_folder)
    batch = pack([make_prompt(1)], pad_id=model.pad_id)
    bound = model.segment_gates(model.weights(stack_states([make_output(1)])), batch)
    assert isinstance(bound, Gates)
    assert bound.segments_BT is None
