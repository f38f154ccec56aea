"""A prefix is read again only where release, mix and tokens are the same."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.models.attention import PrefixStates
from engine.recommender.language import Reading, score_readings
from engine.recommender.prefix_cache import PrefixCache, PrefixKey
from engine.recommender.ranking import rank
from engine.recommender.release import LoadedRelease
from engine.types import FloatArray, SlatePrompt
from tests.recommender.test_ranking import task_of
from tests.tiny_release import TinyWorld


def states(tokens: int) -> PrefixStates:
    """Return states of 8 bytes a token."""
    return PrefixStates([torch.zeros(1, tokens, 1)], [torch.zeros(1, tokens, 1)])


def key(name: str) -> PrefixKey:
    return PrefixKey(name, b"", b"")


def test_what_was_not_used_for_longest_goes_first() -> None:
    cache = PrefixCache(max_bytes=8 * 10)
    for name in "abc":
        cache.put(key(name), states(3))
    assert cache.get(key("a")) is not None
    cache.put(key("d"), states(4))
    assert [cache.get(key(name)) is not None for name in "abcd"] == [True, False, True, True]
    assert (cache.hits, cache.misses, cache.num_bytes) == (4, 1, 80)
    cache.put(key("whale"), states(11))
    assert cache.get(key("whale")) is None
    assert cache.num_bytes == 80
    cache.clear()
    assert cache.get(key("a")) is None
    assert cache.num_bytes == 0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=60))
def test_the_budget_holds_whatever_is_kept(puts: list[tuple[int, int]]) -> None:
    cache = PrefixCache(max_bytes=8 * 12)
    for name, tokens in puts:
        cache.put(key(str(name)), states(tokens))
        assert cache.num_bytes <= 96
        kept = cache.get(key(str(name)))
        assert kept is not None
        assert kept.num_tokens == tokens


@pytest.fixture(scope="module")
def two(world: TinyWorld) -> tuple[LoadedRelease, LoadedRelease]:
    """Return releases of other weights."""
    found = []
    for seed in (1, 2):
        world.publish(f"cached-{seed}", seed=seed)
        found.append(world.load(f"cached-{seed}"))
    return found[0], found[1]


def reading(release: LoadedRelease, seed: int = 0, prefix: int = 0) -> Reading:
    """Return three candidates behind a prefix under random gates."""
    assert release.language is not None
    bank = release.language.model.config
    draw = np.random.default_rng(seed)
    layers = len(release.language.model.blocks)
    gates = draw.dirichlet(np.ones(bank.num_adapters), (1, layers * len(bank.targets)))
    ids = np.random.default_rng(50 + prefix)
    prompt = SlatePrompt(ids.integers(5, 200, 12), [ids.integers(5, 200, 4) for _ in range(3)])
    return Reading(np.arange(3), [prompt], [gates.astype(np.float32)], np.arange(0))


def test_a_second_request_reads_no_prefix_and_has_the_same_logits(
    two: tuple[LoadedRelease, LoadedRelease], monkeypatch: pytest.MonkeyPatch
) -> None:
    release, cache = two[0], PrefixCache(10**7)
    one = reading(release)
    [plain] = score_readings(release, [one])
    [first] = score_readings(release, [one], cache)
    assert release.language is not None
    monkeypatch.setattr(release.language.model, "read_prefixes", None)
    [second] = score_readings(release, [one], cache)
    assert cache.hits == 1
    np.testing.assert_allclose(first, plain, atol=1e-5)
    np.testing.assert_allclose(second, plain, atol=1e-5)


def test_a_users_second_request_finds_the_prefix_whoever_asks_beside(
    world: TinyWorld, release: LoadedRelease
) -> None:
    """The CRM scores a batch in one pass, and its last digits vary with the company."""
    cache = PrefixCache(10**7)
    mine, others = task_of(world, 1), [task_of(world, place) for place in range(2, 6)]
    [alone] = rank(release, [mine], cache)
    assert (cache.hits, cache.misses) == (0, 1)
    together = rank(release, [*others, mine], cache)
    assert (cache.hits, cache.misses) == (1, 1 + len(others))
    assert [item.item_id for item in together[-1].items] == [item.item_id for item in alone.items]


def test_the_last_digits_of_gates_do_not_tell_mixes_apart(
    two: tuple[LoadedRelease, LoadedRelease]
) -> None:
    [gates], [prompt] = reading(two[0]).gates, reading(two[0]).prompts
    noisy = np.nextafter(gates, np.float32(1))
    assert (noisy != gates).all()
    assert PrefixKey.of("r", noisy, prompt.prefix) == PrefixKey.of("r", gates, prompt.prefix)
    moved = gates + np.float32(0.001)
    assert PrefixKey.of("r", moved, prompt.prefix) != PrefixKey.of("r", gates, prompt.prefix)


@pytest.mark.parametrize("part", ["release_id", "gates", "tokens"])
def test_no_part_of_the_key_can_be_left_out(
    part: str, two: tuple[LoadedRelease, LoadedRelease], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change alone is answered afresh; with its part left out of the key it would not be."""
    release, other = two
    asked, changed = reading(release), {
        "release_id": (other, reading(release)), "gates": (release, reading(release, seed=1)),
        "tokens": (release, with_other_prefix(reading(release))),
    }[part]
    expected = score_readings(changed[0], [changed[1]])[0]

    def answer() -> FloatArray:
        cache = PrefixCache(10**7)
        score_readings(release, [asked], cache)
        return score_readings(changed[0], [changed[1]], cache)[0]

    np.testing.assert_allclose(answer(), expected, atol=1e-5)
    whole = PrefixKey.of
    blank: dict[str, Any] = {part: "" if part == "release_id" else b""}
    monkeypatch.setattr(PrefixKey, "of", lambda *parts: whole(*parts)._replace(**blank))
    assert not np.allclose(answer(), expected, atol=1e-3)


def with_other_prefix(one: Reading) -> Reading:
    """Return the same candidates behind a prefix that differs in its first token."""
    [prompt] = one.prompts
    tokens = prompt.prefix.copy()
    tokens[0] += 1
    return replace(one, prompts=[SlatePrompt(tokens, prompt.blocks)])
