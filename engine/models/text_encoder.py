"""Texts -> raw vectors: the base model's mean-pooled hidden states, or a sentence encoder's."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch

from engine.config import BaseModelConfig, ItemTextConfig
from engine.errors import ConfigError
from engine.models.base import device_of, load_base_model, model_path
from engine.types import FloatArray

MAX_TOKENS = 128
"""Tokens read of an item's text."""


class TextEncoder(Protocol):
    """Anything that embeds texts."""

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return float32 rows, one for each text."""


class BaseModelEncoder:
    """Mean of the base model's last hidden states over a text's tokens."""

    def __init__(self, tokenizer: Any, model: Any) -> None:
        self._tokenizer = tokenizer
        self._model = model.eval()

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return [B, H]; special tokens in a text are read as plain characters."""
        rows = [self._tokens_of(text) for text in texts]
        length = max(map(len, rows))
        ids_BT = torch.zeros(len(rows), length, dtype=torch.long)
        mask_BT = torch.zeros(len(rows), length, dtype=torch.long)
        for row, tokens in enumerate(rows):
            ids_BT[row, : len(tokens)] = torch.tensor(tokens)
            mask_BT[row, : len(tokens)] = 1
        device = self._model.device
        hidden_BTH = self._model.get_decoder()(
            input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), use_cache=False
        ).last_hidden_state.float()
        weights_BT1 = mask_BT.to(device)[:, :, None].float()
        pooled_BH = (hidden_BTH * weights_BT1).sum(1) / weights_BT1.sum(1)
        return np.asarray(pooled_BH.cpu().numpy(), np.float32)

    def _tokens_of(self, text: str) -> list[int]:
        tokens = self._tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=True
        )[:MAX_TOKENS]
        return tokens or [0]


class SentenceEncoder:
    """A sentence-transformers model."""

    def __init__(self, path: str, device: str) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(path, device=str(device_of(device)))

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return [B, H]."""
        return np.asarray(self._model.encode(list(texts), show_progress_bar=False), np.float32)


def check_encoder(config: ItemTextConfig, base: BaseModelConfig) -> None:
    """Raise ConfigError if the encoder cannot be loaded; cheap."""
    if config.encoder == "base_model":
        model_path(base)
    elif config.encoder_path is None:
        raise ConfigError("item_text.encoder 'sentence_transformer' needs item_text.encoder_path")
    elif find_spec("sentence_transformers") is None:
        raise ConfigError(
            "item_text.encoder 'sentence_transformer' needs the package: "
            "`pip install sentence-transformers`, or use 'base_model'"
        )


def load_encoder(config: ItemTextConfig, base: BaseModelConfig) -> TextEncoder:
    """Return the configured encoder; raises ConfigError if it cannot be had."""
    check_encoder(config, base)
    if config.encoder == "base_model":
        return BaseModelEncoder(*load_base_model(base))
    return SentenceEncoder(str(config.encoder_path), base.device)
