"""METHOD: what the two mixing modes compute, against dense references in float64.

Every size differs from every other, so that a wrong transpose cannot pass.
"""


import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from engine.config import BankConfig
from engine.errors import ConfigError
from engine.models.lora import GatedAttention, Gates, MetaLoRABank, install_bank, mixed_linear
from engine.types import MixingMode

D_IN, D_OUT, RANK, ADAPTERS, BATCH, LENGTH = 11, 7, 3, 5, 4, 6
BOTH_MODES = pytest.mark.parametrize("mixing", list(MixingMode))


def make_bank(mixing: MixingMode, *, adapters: int = ADAPTERS, rank: int = RANK) -> MetaLoRABank:
    """Return a bank in float64 whose B is not zero."""
    config = BankConfig(num_adapters=adapters, rank=rank, alpha=8.0, mixing=mixing)
    bank = MetaLoRABank(D_IN, D_OUT, config).double()
    nn.init.normal_(bank.a_NRI)
    nn.init.normal_(bank.b_NRO)
    return bank


def inputs() -> Tensor:
    return torch.randn(BATCH, LENGTH, D_IN, dtype=torch.float64)


def random_gates(rows: int = BATCH, adapters: int = ADAPTERS) -> Tensor:
    return torch.softmax(torch.randn(rows, adapters, dtype=torch.float64), dim=-1)


def close(left: Tensor, right: Tensor) -> bool:
    return torch.allclose(left, right, rtol=1e-10, atol=1e-12)


# 1

def test_one_hot_gates_give_that_adapter_alone_in_both_modes() -> None:
    x_BTI = inputs()
    for k in range(ADAPTERS):
        one_hot = torch.zeros(BATCH, 1, ADAPTERS, dtype=torch.float64)
        one_hot[..., k] = 1
        outputs = []
        for mixing in MixingMode:
            torch.manual_seed(1)
            bank = make_bank(mixing)
            outputs.append(bank(x_BTI, one_hot))
            alone = bank.scale * x_BTI @ bank.a_NRI[k].T @ bank.b_NRO[k]
            assert close(outputs[-1], alone)
        assert close(outputs[0], outputs[1])


# 2

@BOTH_MODES
def test_identical_adapters_equal_one_plain_lora_for_any_gates(mixing: MixingMode) -> None:
    bank = make_bank(mixing)
    with torch.no_grad():
        bank.a_NRI.copy_(bank.a_NRI[:1].expand_as(bank.a_NRI))
        bank.b_NRO.copy_(bank.b_NRO[:1].expand_as(bank.b_NRO))
    x_BTI = inputs()
    plain = bank.scale * x_BTI @ bank.a_NRI[0].T @ bank.b_NRO[0]
    assert close(bank(x_BTI, random_gates()[:, None]), plain)


# 4, 5

def test_product_of_sums_has_the_cross_terms_and_rank_r() -> None:
    bank, gates = make_bank(MixingMode.PRODUCT_OF_SUMS), random_gates(1)[0]
    delta_OI = sum(
        bank.scale * gates[i] * gates[j] * bank.b_NRO[i].T @ bank.a_NRI[j]
        for i in range(ADAPTERS)
        for j in range(ADAPTERS)
    )
    x_BTI = inputs()
    assert close(bank(x_BTI, gates[None, None]), x_BTI @ delta_OI.T)
    assert torch.linalg.matrix_rank(delta_OI) <= RANK


def test_sum_of_products_has_no_cross_terms_and_may_exceed_rank_r() -> None:
    bank, gates = make_bank(MixingMode.SUM_OF_PRODUCTS, adapters=2), random_gates(1, 2)[0]
    delta_OI = sum(
        bank.scale * gates[k] * bank.b_NRO[k].T @ bank.a_NRI[k] for k in range(2)
    )
    x_BTI = inputs()
    assert close(bank(x_BTI, gates[None, None]), x_BTI @ delta_OI.T)
    rank = int(torch.linalg.matrix_rank(delta_OI))
    assert RANK < rank <= 2 * RANK
    twin = make_bank(MixingMode.PRODUCT_OF_SUMS, adapters=2)
    twin.load_state_dict(bank.state_dict())
    assert not torch.allclose(twin(x_BTI, gates[None, None]), x_BTI @ delta_OI.T, rtol=0.01)


@BOTH_MODES
@settings(max_examples=25)
@given(
    adapters=st.integers(1, 6), rank=st.integers(1, 4), rows=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_rank_space_equals_the_materialised_update(
    mixing: MixingMode, adapters: int, rank: int, rows: int, seed: int
) -> None:
    torch.manual_seed(seed)
    bank = make_bank(mixing, adapters=adapters, rank=rank)
    gates = random_gates(rows, adapters)
    x_BTI = torch.randn(rows, LENGTH, D_IN, dtype=torch.float64)
    fast = bank(x_BTI, gates[:, None])
    for row in range(rows):
        slow = x_BTI[row] @ bank.materialise(gates[row]).T
        assert close(fast[row], slow)
        a_RI, b_OR = bank.mixed_adapter(gates[row])
        assert close(bank.scale * b_OR @ a_RI, bank.materialise(gates[row]))


@BOTH_MODES
def test_gradients_of_rank_space_equal_the_materialised_form(mixing: MixingMode) -> None:
    bank, x_BTI = make_bank(mixing), inputs()
    gates = random_gates().requires_grad_()
    leaves = (bank.a_NRI, bank.b_NRO, gates)
    fast = torch.autograd.grad(bank(x_BTI, gates[:, None]).square().sum(), leaves)
    dense = torch.stack([x @ bank.materialise(g).T for x, g in zip(x_BTI, gates, strict=True)])
    slow = torch.autograd.grad(dense.square().sum(), leaves)
    assert all(close(left, right) for left, right in zip(fast, slow, strict=True))


# uniform gates (METHOD 1.1)

def test_uniform_gates_reduce_sum_of_products_to_one_lora_of_rank_n_r() -> None:
    bank, x_BTI = make_bank(MixingMode.SUM_OF_PRODUCTS), inputs()
    uniform = torch.full((1, 1, ADAPTERS), 1 / ADAPTERS, dtype=torch.float64)
    wide = x_BTI @ bank.a_NRI.flatten(0, 1).T @ bank.b_NRO.flatten(0, 1)
    assert close(bank(x_BTI, uniform), bank.scale / ADAPTERS * wide)


# 6

def test_ilora_slices_with_uniform_gates_equal_plain_lora() -> None:
    """K slices of rank r/K, scale alpha/(r/K): with gates 1/K the scales cancel to alpha/r."""
    slices, rank, alpha = 4, 8, 16.0
    config = BankConfig(
        num_adapters=slices, rank=rank // slices, alpha=alpha, mixing=MixingMode.SUM_OF_PRODUCTS
    )
    bank = MetaLoRABank(D_IN, D_OUT, config).double()
    nn.init.normal_(bank.b_NRO)
    x_BTI = inputs()
    plain = alpha / rank * x_BTI @ bank.a_NRI.flatten(0, 1).T @ bank.b_NRO.flatten(0, 1)
    uniform = torch.full((1, 1, slices), 1 / slices, dtype=torch.float64)
    assert close(bank(x_BTI, uniform), plain)


# segments

def test_each_token_follows_the_gates_of_its_segment() -> None:
    bank, x_BTI = make_bank(MixingMode.SUM_OF_PRODUCTS), inputs()
    weights = torch.softmax(torch.randn(BATCH, 3, 1, ADAPTERS, dtype=torch.float64), -1)
    segments = torch.tensor([[0, 0, 1, 1, 2, 0]]).expand(BATCH, -1)
    mixed = bank(x_BTI, Gates(weights, segments).of(0))
    for row in range(BATCH):
        for token in range(LENGTH):
            gates = weights[row, segments[row, token], 0]
            expected = bank.materialise(gates) @ x_BTI[row, token]
            assert close(mixed[row, token], expected)


def test_a_bound_view_leaves_nothing_on_the_shared_block() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = nn.Linear(D_IN, D_OUT)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.q_proj(x)
            return out

    config = BankConfig(num_adapters=2, targets=("q_proj",))
    gated = GatedAttention(Block(), config, first_gate=0)
    nn.init.normal_(gated.banks["q_proj"].b_NRO)
    before = set(gated.attention.__dict__)
    x_BTI = torch.randn(BATCH, LENGTH, D_IN)
    gates = Gates(torch.softmax(torch.randn(BATCH, 1, 1, 2), -1))
    mixed = gated(x_BTI, gates=gates)
    linear = gated.attention.q_proj
    assert torch.equal(mixed, mixed_linear(linear, gated.banks["q_proj"], gates.of(0), x_BTI))
    assert set(gated.attention.__dict__) == before
    assert torch.equal(gated(x_BTI), linear(x_BTI))


def test_a_model_without_the_target_matrices_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="'nowhere_proj'"):
        install_bank(nn.Sequential(nn.Linear(2, 2)), BankConfig(targets=("nowhere_proj",)))
