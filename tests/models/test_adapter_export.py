import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from engine import storage
from engine.models.adapter_export import export_adapter
from engine.models.base import load_base_model
from engine.types import GateInput, MixingMode
from tests.models.test_personalized import make_model, make_output, make_prompt
from tests.tiny_llama import tiny_base


@pytest.mark.parametrize("gate", list(GateInput))
@pytest.mark.parametrize("mixing", list(MixingMode))
@torch.no_grad()
def test_pefts_own_loader_gives_the_same_logits(
    tmp_path: Path, mixing: MixingMode, gate: GateInput
) -> None:
    tiny_base(tmp_path / "base")
    model = make_model(tmp_path / "base", mixing, gate).float()
    prompt, output = make_prompt(1, blocks=(5,)), make_output(1, 1)
    weights_GN = model.gates(output)[-1]            # target and hybrid: the candidate's own mix
    export_adapter(model, weights_GN, str(tmp_path / "adapter"), str(tmp_path / "base"))
    _, plain = load_base_model(tiny_base(tmp_path / "base"))
    loaded = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    ids = torch.from_numpy(np.concatenate([prompt.prefix, prompt.blocks[0]]))[None]
    answer = loaded(input_ids=ids, output_hidden_states=True)
    logits_V = answer.logits[0, -1]
    odds = float(logits_V[model.answers.positive] - logits_V[model.answers.negative])
    frozen = model.score([prompt], None)[0][0]
    assert not np.isclose(odds, frozen, rtol=1e-2)
    readout = storage.read_tensors(str(tmp_path / "adapter" / "readout.safetensors"))
    mean_D = answer.hidden_states[-1][0, len(prompt.prefix) :].mean(0).numpy()
    unit_D = mean_D / np.sqrt((mean_D**2).mean())
    logit = odds + unit_D @ readout["weight"] + readout["bias"][0]
    gates = np.broadcast_to(weights_GN, model.gates(output).shape)
    assert np.isclose(logit, model.score([prompt], [gates])[0][0], rtol=1e-4, atol=1e-4)


def test_the_exported_config_names_rank_and_base(tmp_path: Path) -> None:
    tiny_base(tmp_path / "base")
    model = make_model(tmp_path / "base", MixingMode.SUM_OF_PRODUCTS).float()
    export_adapter(model, model.gates(make_output(1))[0], str(tmp_path / "adapter"), "the-base")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 15
    assert config["lora_alpha"] / config["r"] == pytest.approx(2.0)
    assert config["base_model_name_or_path"] == "the-base"
    assert config["target_modules"] == ["q_proj", "v_proj"]
