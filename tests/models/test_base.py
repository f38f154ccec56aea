"""A base model is known by what its files hold, however many there are."""

import os
from pathlib import Path

import pytest
import torch

from engine.config import BankConfig, BaseModelConfig, PromptConfig
from engine.errors import ConfigError, PromptError
from engine.models.base import base_model_digest, worker_dtype
from engine.models.personalized import check_base_model
from tests.tiny_llama import tiny_base

SHARDS = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize("name", [*SHARDS, "pytorch_model.bin", "tokenizer.model"])
def test_a_change_of_any_file_of_weights_or_tokenizer_changes_the_digest(
    tmp_path: Path, name: str
) -> None:
    for each in ("config.json", *SHARDS, "pytorch_model.bin", "tokenizer.model"):
        (tmp_path / each).write_bytes(b"one")
    base = BaseModelConfig(name=str(tmp_path))
    before = base_model_digest(base)
    assert base_model_digest(base) == before
    (tmp_path / name).write_bytes(b"two")
    os.utime(tmp_path / name, ns=(1, 1))                # a clock may be coarser than this test
    after = base_model_digest(base)
    assert {key for key in after if after[key] != before[key]} == {name}


def test_an_id_of_hugging_face_has_no_digest() -> None:
    assert base_model_digest(BaseModelConfig(name="HuggingFaceTB/SmolLM2-135M")) == {}


def test_what_does_not_fit_a_base_model_is_named_without_its_weights(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    for file in (tmp_path / "base").glob("*.safetensors"):
        file.unlink()
    check_base_model(base, PromptConfig(), BankConfig())
    with pytest.raises(PromptError, match="'Definitely'"):
        check_base_model(base, PromptConfig(positive="Definitely"), BankConfig())
    with pytest.raises(ConfigError, match="qkv_proj"):
        check_base_model(base, PromptConfig(), BankConfig(targets=("qkv_proj",)))
    with pytest.raises(ConfigError, match=r"base_model\.name"):
        check_base_model(
            BaseModelConfig(name=str(tmp_path / "none")), PromptConfig(), BankConfig()
        )


@pytest.mark.parametrize(("units", "on_cpu"), [
    ({"amx_bf16": True}, "bfloat16"), ({"avx512_bf16": True}, "bfloat16"),
    ({"avx512_bf16": False, "avx2": True}, "float32"),
])
def test_auto_is_the_type_that_the_workers_are_fast_in(
    units: dict[str, bool], on_cpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert worker_dtype(BaseModelConfig(), use_gpu=False) == on_cpu
    assert worker_dtype(BaseModelConfig(), use_gpu=True) == "bfloat16"
    assert worker_dtype(BaseModelConfig(device="cpu"), use_gpu=True) == on_cpu
    assert worker_dtype(BaseModelConfig(dtype="float16"), use_gpu=True) == "float16"
