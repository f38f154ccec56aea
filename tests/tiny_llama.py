"""A tiny random Llama with a tokenizer and chat template of SmolLM2's form: no fetched file.

    config = tiny_base(tmp_path / "base")      # BaseModelConfig that names the folder

Equal seeds give equal files.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from engine.config import BaseModelConfig

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CORPUS = [
    "system user assistant Yes No yes no Answer only You know the user's taste in movies products.",
    "Predict whether the user will enjoy the movie. Will the user buy this product? (Drama): 5",
    "About the user: gender F; gender M; age 24; occupation writer. liked 47%. History, newest:",
    "Average rating 3.6 over 85 movies, liked 50%. No movie yet. Action, Comedy, Crime, Romance",
    "Adventure Animation Children's Thriller War Western Sci-Fi Mystery Musical 1995 1996 1997",
    *["Yes No"] * 20,
] * 4


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of about 500 tokens; `Yes` and `No` are one token each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, min_frequency=2, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=SPECIAL[0], bos_token=SPECIAL[1],
        eos_token=SPECIAL[2], pad_token=SPECIAL[2], chat_template=CHAT_TEMPLATE,
    )


def tiny_base(
    folder: Path | str, *, seed: int = 5, hidden_size: int = 32, layers: int = 2, heads: int = 4,
    key_value_heads: int = 2, dtype: str = "float32",
) -> BaseModelConfig:
    """Write config, weights and tokenizer below `folder` and return the settings that name it."""
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        hidden_size=hidden_size, intermediate_size=2 * hidden_size, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_value_heads, vocab_size=len(tokenizer),
        max_position_embeddings=4096, initializer_range=0.2, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return BaseModelConfig(name=str(folder), device="cpu", dtype=dtype)
