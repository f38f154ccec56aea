"""The frozen base model: fetched folder, local folder or Hugging Face id -> tokenizer and model."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from engine import storage
from engine.config import BaseModelConfig
from engine.errors import ConfigError
from engine.models import attention

if TYPE_CHECKING:       # importing transformers takes seconds: only where a model is loaded
    from transformers import PreTrainedModel

FETCHED = ("smollm2-135m-instruct",)
"""Names that `jobs/fetch_inputs.py` puts into the model cache."""

BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16")
"""What a CPU must have, one of them, for products in bfloat16 to beat those in float32."""


def model_path(config: BaseModelConfig) -> str:
    """Return the folder or Hugging Face id of the base model."""
    if config.name not in FETCHED:
        return config.name
    folder = Path(config.cache) / config.name
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"base_model {config.name!r} is not in {str(folder)!r}; "
            "run `python -m jobs.fetch_inputs` or name a local folder"
        )
    return str(folder)


def device_of(name: str) -> torch.device:
    """Return a device; `auto` takes a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def dtype_of(config: BaseModelConfig) -> torch.dtype:
    """Return the type of weights and activations; `auto` takes what the device is fast in."""
    if config.dtype != "auto":
        return getattr(torch, config.dtype)     # type: ignore[no-any-return]
    if device_of(config.device).type == "cpu":
        has = torch.cpu.get_capabilities()
        fast = any(has.get(unit, False) for unit in BFLOAT16_UNITS)
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16


def worker_dtype(config: BaseModelConfig, *, use_gpu: bool) -> str:
    """Return the name of the type in which a run's workers hold the frozen weights.

    What is made with another type has other numbers, so the name is in the keys of artifacts. For
    workers without a GPU `auto` is resolved by this machine's CPU: name the type in the settings
    where a cluster mixes CPUs with and without bfloat16.
    """
    if use_gpu and config.dtype == "auto" and config.device != "cpu":
        return "bfloat16"                       # the driver's machine may have no GPU
    on_cpu = config.model_copy(update={"device": "cpu"})
    return str(dtype_of(on_cpu)).removeprefix("torch.")


def load_tokenizer(config: BaseModelConfig) -> Any:
    """Return the base model's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_path(config))


def load_base_model(config: BaseModelConfig) -> tuple[Any, "PreTrainedModel"]:
    """Return tokenizer and frozen model in eval mode on its device."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        model_path(config), dtype=dtype_of(config), attn_implementation=attention.register()
    )
    model.requires_grad_(False).eval().to(device_of(config.device))
    _remove_dropout(model)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return load_tokenizer(config), model


def _remove_dropout(model: nn.Module) -> None:
    """Make train mode (which checkpointing and the bank's own dropout need) exact for the base."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010


IDENTITY = ("config.json", "*.safetensors", "*.bin", "tokenizer.*", "chat_template.jinja")
"""Files that make a base model what it is: weights (also in several files), tokenizer, template."""


def base_model_digest(config: BaseModelConfig) -> dict[str, str]:
    """Return checksums of a local base model's files; empty for a Hugging Face id."""
    folder = Path(model_path(config))
    return {
        path.name: _checksum(path, path.stat().st_mtime_ns)
        for pattern in IDENTITY for path in sorted(folder.glob(pattern)) if path.is_file()
    }


@lru_cache(maxsize=1024)
def _checksum(path: Path, _changed_ns: int) -> str:
    """Return a file's checksum, read once for each state of the file."""
    return storage.describe_file(str(path))[0]
