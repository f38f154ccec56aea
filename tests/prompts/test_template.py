from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import LabelConfig, PromptConfig, SourceConfig
from engine.data.catalogue import Catalogue
from engine.errors import PromptError
from engine.prompts.template import PromptBuilder
from engine.types import GateInput, History, HistoryScope, Profile
from tests.tiny_llama import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
NUM_ITEMS = 30
CATALOGUE = Catalogue(
    ["", *(f"i{n}" for n in range(1, NUM_ITEMS + 1))],
    ["", *(f"Movie {n}" for n in range(1, NUM_ITEMS + 1))],
    {
        "genres": [(), *[("Drama",), ("Action", "War")] * (NUM_ITEMS // 2)],
        "year": [(), *((str(1960 + n),) for n in range(1, NUM_ITEMS + 1))],
    },
)
PROFILE = Profile("u", {"gender": ("F",), "age": ("24",), "occupation": ()})


def vectors() -> Any:
    """Items n and n + 10 and n + 20 point the same way: a known similarity."""
    angles = np.arange(NUM_ITEMS + 1) % 10 * (np.pi / 20)
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    rows[0] = 0
    return rows


def builder(source: SourceConfig | None = None, **prompt: Any) -> PromptBuilder:
    return PromptBuilder(
        PromptConfig(**prompt), source or SourceConfig(), TOKENIZER, CATALOGUE, vectors()
    )


def history_of(items: list[int], ratings: list[float] | None = None) -> History:
    values = np.array(ratings or [5.0] * len(items), np.float32)
    return History(
        np.array(items, np.int32), values, (values >= 4).astype(np.int8), np.arange(len(items))
    )


def text_of(built: Any, block: int = 0) -> str:
    text: str = TOKENIZER.decode([*built.prompt.prefix, *built.prompt.blocks[block]])
    return text


def test_a_prompt_worked_out_by_hand() -> None:
    built = builder(history_size=4).build(
        history_of([1, 2, 3], [5, 2, 4.5]), PROFILE, np.array([8])
    )
    assert text_of(built) == (
        "<|im_start|>system\n"
        "You know the user's taste in movies. After each movie answer only Yes or No.<|im_end|>\n"
        "<|im_start|>user\n"
        "About the user: gender F; age 24.\n"
        "Average rating 3.8 over 3 movies, liked 67%.\n"
        "History, newest last:\n"
        "- Movie 1: 5\n"
        "- Movie 2: 2\n"
        "- Movie 3: 4.5\n"
        "For each movie: will the user enjoy it?<|im_end|>\n"
        "<|im_start|>assistant\n"
        "Movie 8 (1968; Action, War)\n"
    )
    assert built.shown.tolist() == [0, 1, 2]


def test_an_endless_title_takes_no_room_of_others() -> None:
    endless = Catalogue(CATALOGUE.item_ids, [*CATALOGUE.titles], CATALOGUE.fields)
    endless.titles[3] = "Rose is a " * 2000
    prompts = builder(history_size=4).with_items(endless, vectors())
    built = prompts.build(history_of([1, 3], [5, 2]), PROFILE, np.array([3, 8]))
    assert len(built.prompt.blocks[0]) == 128 + len(TOKENIZER.encode("\n"))
    assert text_of(built, 1).endswith("Movie 8 (1968; Action, War)\n")
    assert "- Movie 1: 5\n- Rose is a Rose" in text_of(built)
    assert ": 2\nFor each movie" in text_of(built)      # what the user thought of it stands
    assert built.shown.tolist() == [0, 1]


def test_implicit_feedback_shows_no_ratings() -> None:
    source = SourceConfig(label=LabelConfig(kind="implicit"))
    built = builder(source, noun="product", verb="buy", history_fields=("genres",)).build(
        history_of([1]), Profile(), np.array([8])
    )
    assert (
        "Chose 1 products so far.\nHistory, newest last:\n- Movie 1 (Drama)\n"
        "For each product: will the user buy it?<|im_end|>" in text_of(built)
    )


def test_clicks_and_skips_without_ratings_are_told_apart() -> None:
    source = SourceConfig(format="csv", label=LabelConfig(kind="column"))
    history = replace(history_of([1, 2]), ratings=np.ones(2, np.float32), labels=np.array([1, 0]))
    built = builder(source).build(history, Profile(), np.array([8]))
    assert (
        "Of 2 movies liked 50%.\nHistory, newest last:\n- Movie 1: Yes\n- Movie 2: No\n"
        in text_of(built)
    )


def test_an_empty_history_says_so() -> None:
    built = builder().build(History.empty(), Profile(), np.array([1, 2]))
    assert "No movie yet.\nFor each movie" in text_of(built)
    assert len(built.prompt.blocks) == 2


def test_half_of_the_text_is_the_newest_and_half_like_what_the_user_liked() -> None:
    items = [5, 4, 15, 3, 25, 8, 9, 10]                     # liked: all of direction 5
    ratings = [5.0, 1, 5, 1, 5, 1, 1, 1]
    built = builder(history_size=4, recent_share=0.5).build(
        history_of(items, ratings), PROFILE, np.array([1])
    )
    assert built.shown.tolist() == [2, 4, 6, 7]


def test_the_slate_prefix_does_not_depend_on_the_candidates() -> None:
    history = history_of(list(range(1, 25)))
    one = builder(history_size=4).build(history, PROFILE, np.array([7]))
    other = builder(history_size=4).build(history, PROFILE, np.array([8, 9]))
    assert one.prompt.prefix.tolist() == other.prompt.prefix.tolist()


def test_candidate_scope_shows_the_past_most_like_each_candidate() -> None:
    history = history_of([1, 2, 3, 11, 12, 13])
    chooser = builder(history_size=2, recent_share=0.0, scope=HistoryScope.CANDIDATE)
    prompts = chooser.build_all(history, PROFILE, np.array([21, 22]))
    assert [built.shown.tolist() for built in prompts] == [[0, 3], [1, 4]]
    assert all(len(built.prompt.blocks) == 1 for built in prompts)


def test_target_gates_get_a_prompt_for_each_candidate_with_the_text_of_the_slate() -> None:
    history, candidates = history_of([1, 2, 3]), np.array([21, 22])
    [shared] = builder().build_all(history, PROFILE, candidates, GateInput.HYBRID)
    apart = builder().build_all(history, PROFILE, candidates, GateInput.TARGET)
    assert [each.prompt.prefix.tolist() for each in apart] == [shared.prompt.prefix.tolist()] * 2
    assert [[block.tolist() for block in each.prompt.blocks] for each in apart] == [
        [block.tolist()] for block in shared.prompt.blocks
    ]


@settings(max_examples=40)
@given(
    length=st.integers(0, 40), size=st.integers(0, 20), share=st.floats(0, 1),
    max_tokens=st.integers(200, 500),
)
def test_the_oldest_history_is_cut_and_never_the_question(
    length: int, size: int, share: float, max_tokens: int
) -> None:
    history = history_of([1 + n % NUM_ITEMS for n in range(length)])
    roomy = builder(history_size=size, recent_share=share, max_tokens=4000)
    tight = builder(history_size=size, recent_share=share, max_tokens=max_tokens)
    whole = roomy.build(history, PROFILE, np.array([4, 6]))
    built = tight.build(history, PROFILE, np.array([4, 6]))
    assert len(whole.shown) == min(size, length)
    assert len(set(whole.shown)) == len(whole.shown)
    assert len(built.prompt.prefix) + max(map(len, built.prompt.blocks)) <= max_tokens
    assert built.shown.tolist() == whole.shown.tolist()[built.cut :]
    for block, reference in zip(built.prompt.blocks, whole.prompt.blocks, strict=True):
        assert block.tolist() == reference.tolist()


def test_an_endless_profile_leaves_room_for_the_history() -> None:
    endless = Profile("u", {"gender": ("F",), "tags": tuple(f"tag {n}" for n in range(1000))})
    built = builder().build(history_of([1, 2, 3]), endless, np.array([8]))
    text = text_of(built)
    assert "About the user: gender F; tags tag 0, tag 1," in text
    assert "tag 999" not in text
    assert "\nAverage rating 5.0 over 3 movies, liked 100%.\nHistory, newest last:\n" in text
    assert built.shown.tolist() == [0, 1, 2]
    assert len(built.prompt.prefix) < 400


def test_a_question_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(PromptError, match="max_tokens is 64"):
        builder(max_tokens=64).build(History.empty(), PROFILE, np.array([1]))


def test_the_digest_changes_with_text_frame_and_tokenizer_and_nothing_else() -> None:
    assert builder().digest() == builder(history_size=20, max_tokens=700).digest()
    others = [builder(verb="like"), builder(system="Say {positive} or {negative}.")]
    plain = builder()
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["movie"])
    foreign = PromptBuilder(plain.config, plain.source, tokenizer, CATALOGUE, vectors())
    digests = {each.digest() for each in (plain, foreign, *others)}
    assert len(digests) == 4
