"""One mix of the bank -> a plain LoRA in PEFT's format, exact in both modes.

    product_of_sums   rank r,   lora_alpha = alpha      A = sum a_k A_k, B = sum a_k B_k
    sum_of_products   rank N r, lora_alpha = alpha N    A_k stacked, a_k B_k side by side

    adapter_model.safetensors, adapter_config.json
    readout.safetensors     weight [D], bias [1] of models/readout.py, where the release has one:
                            what it adds to the log-odds of the answer
"""

import numpy as np
import torch
from peft import LoraConfig

from engine import storage
from engine.models.lora import GatedAttention
from engine.models.personalized import PersonalizedLLM
from engine.types import FloatArray, MixingMode

PREFIX = "base_model.model"


def export_adapter(
    model: PersonalizedLLM, weights_GN: FloatArray, folder: str, base_name: str
) -> None:
    """Write the adapter that the gates `weights_GN` [G, N] mix; PEFT loads the folder."""
    storage.write_tensors(
        storage.join(folder, "adapter_model.safetensors"), adapter_tensors(model, weights_GN)
    )
    if model.readout is not None:
        weights = {name: each.cpu().numpy() for name, each in model.readout.state_dict().items()}
        storage.write_tensors(storage.join(folder, "readout.safetensors"), weights)
    config = adapter_config(model, base_name).to_dict()
    plain = {
        key: sorted(value) if isinstance(value, set) else value for key, value in config.items()
    }
    storage.write_json(storage.join(folder, "adapter_config.json"), plain)


def adapter_config(model: PersonalizedLLM, base_name: str) -> LoraConfig:
    """Return PEFT's settings of an exported adapter."""
    bank = model.config
    wide = bank.num_adapters if bank.mixing is MixingMode.SUM_OF_PRODUCTS else 1
    return LoraConfig(
        r=bank.rank * wide, lora_alpha=bank.alpha * wide, target_modules=list(bank.targets),
        lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", inference_mode=True,
        base_model_name_or_path=base_name,
    )


@torch.no_grad()
def adapter_tensors(
    model: PersonalizedLLM, weights_GN: FloatArray
) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Return PEFT's tensors by name (float32)."""
    tensors = {}
    for path, block in model.base.named_modules():
        if not isinstance(block, GatedAttention):
            continue
        for gate, target, bank in block.targets():
            weights_N = torch.from_numpy(weights_GN[gate]).to(bank.a_NRI)
            matrices = zip(("lora_A", "lora_B"), bank.mixed_adapter(weights_N), strict=True)
            for name, matrix in matrices:
                key = f"{PREFIX}.{path}.{target}.{name}.weight"
                tensors[key] = matrix.float().cpu().contiguous().numpy()
    return tensors
