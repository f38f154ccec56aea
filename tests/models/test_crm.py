"""The model: masks, independence of candidates, gradients."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.models.crm import CRM, CRMTensors, to_tensors
from engine.models.crm_features import CRMBatch, build_rows, join
from engine.training.crm_batches import merge_batches
from tests import crm_world as world

MAPS = world.maps()
SPACE = MAPS.space(world.catalogue(), world.vectors(), world.CRM_CONFIG, world.SOURCE)
TABLE = to_tensors(SPACE.items, "cpu")


def batch_of(length: int, candidates: list[int], seed: int = 1) -> CRMBatch:
    codes = SPACE.user_fields.encode_all([world.profile("u1").fields])
    rows = build_rows(
        SPACE, 1, codes, world.history(length, seed), np.array(candidates),
        np.full(len(candidates), length),
    )
    return rows.batch(np.arange(len(candidates)), world.CRM_CONFIG.max_recent)


def run(model: CRM, batch: CRMBatch, drawn: list[int] | None = None) -> CRMTensors:
    with torch.no_grad():
        items = None if drawn is None else torch.tensor(drawn)
        return model(to_tensors(batch, "cpu"), TABLE, items)


@pytest.fixture
def model() -> CRM:
    return world.model(MAPS).eval()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_padding_never_changes_a_score(model: CRM) -> None:
    short, long = batch_of(1, [2, 3]), batch_of(9, [4])
    together = run(model, merge_batches([short, long]))
    close(together.logits_B[:2], run(model, short).logits_B)
    close(together.logits_B[2:], run(model, long).logits_B)
    close(together.user_states_RD[0], run(model, short).user_states_RD[0])
    assert not together.attention_BS[:2, 1:].any()


def test_the_user_state_does_not_depend_on_the_candidate(model: CRM) -> None:
    one, other = run(model, batch_of(8, [2])), run(model, batch_of(8, [5]))
    close(one.user_states_RD, other.user_states_RD)
    assert (one.target_states_BH - other.target_states_BH).abs().max() > 1e-3


def test_the_user_state_depends_on_each_newest_event(model: CRM) -> None:
    batch = batch_of(8, [2])
    state = run(model, batch).user_states_RD
    for place in range(world.CRM_CONFIG.max_recent):
        levels = batch.recent_levels_RL.copy()
        levels[0, place] = levels[0, place] % 10 + 1
        changed = run(model, replace(batch, recent_levels_RL=levels)).user_states_RD
        assert (changed - state).abs().max() > 1e-4


def test_an_empty_history_reads_the_learned_vector(model: CRM) -> None:
    batch = batch_of(0, [2])
    before = run(model, batch)
    assert torch.isfinite(before.logits_B).all()
    with torch.no_grad():
        model.no_history += 1
        model.nothing += 1
    after = run(model, batch)
    assert (after.user_states_RD - before.user_states_RD).abs().max() > 1e-3
    assert (after.logits_B - before.logits_B).abs().max() > 1e-4


def test_attention_is_din_on_target_event_difference_and_product(model: CRM) -> None:
    batch = batch_of(9, [3])
    inputs = to_tensors(batch, "cpu")
    places, items = model._embed_items(inputs, TABLE)
    targets = items[places["items_B"]]
    events = model._embed_events(
        model.event_item(items), places["behavior_items_BS"], inputs["behavior_levels_BS"],
        inputs["behavior_residuals_BS2"],
    )
    wide = targets[:, None].expand_as(events)
    pairs = torch.cat([wide, events, wide - events, wide * events, inputs["cosines_BS"][..., None]],
                      dim=-1)
    # W [t, h, t - h, t * h] with W_t = W1 + W3 and W_h = W2 - W3; W3 is free, here random
    free = torch.randn(6, 6)
    weight = torch.cat([
        model.attention_target.weight - free, model.attention_event.weight + free, free,
        model.attention_product.weight, model.attention_cosine.weight,
    ], dim=1)
    hidden = torch.relu(pairs @ weight.T + model.attention_target.bias)
    scores = model.attention_score(hidden).squeeze(-1) + (wide * events).sum(-1) / 6**0.5
    scores = torch.cat([scores, model.nothing_score.expand(1, 1)], dim=1)
    expected = torch.softmax(scores, dim=1)[:, :-1]
    close(run(model, batch).attention_BS, expected.detach())


def test_retrieval_scores_are_state_times_vector(model: CRM) -> None:
    batch = batch_of(9, [3, 4])
    found = run(model, batch, drawn=[1, 7, 3])
    with torch.no_grad():
        queries = model.retrieval_states(model.user_states(to_tensors(batch, "cpu"), TABLE))
        vectors = model.retrieval_vectors(torch.arange(world.ITEMS + 1), TABLE)
    scores = queries @ vectors.T
    assert found.own_scores_B is not None
    assert found.drawn_scores_BN is not None
    close(found.own_scores_B, scores[0, [3, 4]])
    close(found.drawn_scores_BN, scores[:, [1, 7, 3]].expand(2, 3))


def test_every_weight_learns(model: CRM) -> None:
    batch = merge_batches([batch_of(0, [2]), batch_of(9, [3, 4])])
    found = model(to_tensors(batch, "cpu"), TABLE, torch.tensor([1, 2]))
    loss = found.logits_B.square().sum() + found.drawn_scores_BN.square().sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_dropped_ids_act_like_unknown_ones(model: CRM) -> None:
    batch = batch_of(6, [2])
    model.id_dropout = 1 - 1e-9
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    dropped = run(model, batch)
    model.eval()
    unknown = {**TABLE, "rows_I": torch.zeros_like(TABLE["rows_I"])}
    inputs = to_tensors(replace(batch, users_R=np.zeros(1, np.int32)), "cpu")
    with torch.no_grad():
        expected = model(inputs, unknown)
    close(dropped.logits_B, expected.logits_B)


def test_rows_of_different_users_score_as_one_by_one(model: CRM) -> None:
    codes = SPACE.user_fields.encode_all([world.profile("u1").fields])
    parts = [
        build_rows(SPACE, n % 3, codes, world.history(n, n), np.array([n + 1, 2]), np.array([n, 0]))
        for n in range(5)
    ]
    whole = join(parts)
    order = np.array([7, 2, 9, 0, 4, 1])
    together = run(model, whole.batch(order, 5)).logits_B
    for logit, row in zip(together, order, strict=True):
        alone = run(model, parts[row // 2].batch(np.array([row % 2]), 5)).logits_B[0]
        close(logit, alone)
