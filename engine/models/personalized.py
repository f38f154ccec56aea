"""Frozen base model + bank + router: (packed prompts, CRM output) -> one logit per candidate.

The logit is the log-odds of the positive over the negative answer token at a candidate's last
position, and what the readout adds (`bank.readout`). Only those positions pass through the two
answer rows of the output head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine import storage
from engine.config import BankConfig, BaseModelConfig, PromptConfig
from engine.errors import ArtifactError, ConfigError
from engine.models.attention import BlockLayout, Layout, PrefixLayout, PrefixStates
from engine.models.base import load_base_model, load_tokenizer, model_path
from engine.models.lora import Gates, install_bank
from engine.models.packing import PackedBatch, pack, pack_row
from engine.models.readout import Readout
from engine.models.router import Router
from engine.prompts.tokens import Answers, answer_tokens
from engine.types import CRMOutput, FloatArray, GateInput, IntArray, SlatePrompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel


DROPOUTS = ("dropout", "gate_dropout")
"""Settings of a bank that training alone reads."""
STANDARD = "readout.safetensors"
"""What the readout's states were standardised by in training; a released model does without."""


@dataclass(frozen=True, slots=True)
class States:
    """CRM output of B prompts, as the router reads it."""

    user_BD: Tensor
    target_BMD: Tensor
    """Target-aware state of each candidate; zeros where there is none."""

    def take(self, order: Sequence[int] | Tensor) -> "States":
        """Return these rows."""
        return States(self.user_BD[order], self.target_BMD[order])


def stack_states(outputs: Sequence[CRMOutput], device: torch.device | str = "cpu") -> States:
    """Return the states of several prompts, padded to the most candidates."""
    slots = max(len(output.target_states_MD) for output in outputs)
    width = outputs[0].target_states_MD.shape[1]
    target_BMD = np.zeros((len(outputs), slots, width), np.float32)
    for row, output in enumerate(outputs):
        target_BMD[row, : len(output.target_states_MD)] = output.target_states_MD
    user_BD = np.stack([output.user_state_D for output in outputs]).astype(np.float32)
    return States(torch.from_numpy(user_BD).to(device), torch.from_numpy(target_BMD).to(device))


def pair_losses(logits_BM: Tensor, labels_BM: Tensor, is_candidate_BM: Tensor) -> Tensor:
    """Return each candidate's mean loss over those of its slate that have the other label, [B, M].

    The loss of a pair is -log sigmoid(positive's logit - negative's) (BPR, arXiv 1205.2618): what
    raises a whole slate, as a generous user does, is not learned. 0 without such a pair.
    """
    signs_BM = 2 * labels_BM - 1
    margins_BMM = signs_BM[:, :, None] * (logits_BM[:, :, None] - logits_BM[:, None, :])
    is_pair_BMM = (
        (labels_BM[:, :, None] != labels_BM[:, None, :])
        & is_candidate_BM[:, :, None] & is_candidate_BM[:, None, :]
    )
    losses_BMM = F.softplus(-margins_BMM) * is_pair_BMM
    return losses_BMM.sum(-1) / is_pair_BMM.sum(-1).clamp_min(1)


def check_base_model(base: BaseModelConfig, prompt: PromptConfig, bank: BankConfig) -> None:
    """Raise ConfigError or PromptError where a base model does not fit the settings: no such model,
    answers of several tokens, no such layers. Its weights are not read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        answer_tokens(load_tokenizer(base), prompt)
        config = AutoConfig.from_pretrained(model_path(base))
    except OSError as error:
        raise ConfigError(f"base_model.name {base.name!r} cannot be loaded: {error}") from error
    with torch.device("meta"):
        install_bank(AutoModelForCausalLM.from_config(config), bank)


class PersonalizedLLM(nn.Module):
    """A frozen language model whose attention follows each user's mix of the bank."""

    def __init__(
        self,
        base: "PreTrainedModel",
        tokenizer: Any,
        bank: BankConfig,
        prompt: PromptConfig,
        state_dims: tuple[int, int],
    ) -> None:
        """`state_dims`: width of the CRM's user state and of its target-aware state."""
        super().__init__()
        self.config = bank
        self.state_dims = state_dims
        self.answers: Answers = answer_tokens(tokenizer, prompt)
        self.pad_id = int(tokenizer.pad_token_id or 0)
        self.blocks = install_bank(base, bank)
        self.base: Any = base       # transformers' attributes are untyped
        self.readout = Readout(base.config.hidden_size) if bank.readout == "block" else None
        num_gates = len(self.blocks) * len(bank.targets)
        device = next(base.parameters()).device
        self.user_router = self.target_router = None
        if bank.gate is not GateInput.TARGET:
            self.user_router = Router(state_dims[0], num_gates, bank).to(device)
        if bank.gate is not GateInput.USER:
            self.target_router = Router(state_dims[1], num_gates, bank).to(device)
        if self.readout is not None:
            self.readout.to(device)
        for block in self.blocks:
            block.banks.to(device=device, dtype=torch.float32)

    @property
    def device(self) -> torch.device:
        """Where prompts must be."""
        return self.blocks[0].device

    # ----- gates

    def weights(self, states: States) -> Tensor:
        """Return mixing weights [B, P, G, N]: P = 1 (user), M (target) or 1 + M (hybrid)."""
        parts = []
        if self.user_router is not None:
            parts.append(self.user_router(states.user_BD)[:, None])
        if self.target_router is not None:
            rows, slots, _ = states.target_BMD.shape
            flat = self.target_router(states.target_BMD.flatten(0, 1))
            parts.append(flat.unflatten(0, (rows, slots)))
        return torch.cat(parts, dim=1)

    def segment_gates(self, weights_BPGN: Tensor, batch: PackedBatch) -> Gates:
        """Give every token its segment's weights.

        `target` gates change the prefix too, so such a prompt has one candidate.
        """
        if self.config.gate is GateInput.HYBRID:
            return Gates(weights_BPGN, batch.segments_BT)
        if weights_BPGN.shape[1] != 1:
            raise ValueError(
                f"{self.config.gate} gates need one row of weights a prompt, got "
                f"{weights_BPGN.shape[1]}; score each candidate in its own prompt"
            )
        return Gates(weights_BPGN)

    # ----- scores

    def hidden_states(
        self, batch: PackedBatch, gates: Gates | None, layout: Layout | None = None
    ) -> Tensor:
        """Return the last hidden state of every token, [B, T, D]; without gates the base model's.

        With a layout, tokens see what it says instead of what the batch's mask says.
        """
        hidden_BTD: Tensor = self.base.get_decoder()(
            input_ids=batch.input_ids_BT, attention_mask=batch.mask_B1TT,
            position_ids=batch.positions_BT, use_cache=False, gates=gates, layout=layout,
        ).last_hidden_state
        return hidden_BTD

    def answer_states(self, hidden_BTD: Tensor, batch: PackedBatch) -> Tensor:
        """Return those at the answer positions, [B, M, D]."""
        index_BMD = batch.answers_BM[:, :, None].expand(-1, -1, hidden_BTD.shape[-1])
        answer_BMD: Tensor = hidden_BTD.gather(1, index_BMD)
        return answer_BMD

    def answer_logits(self, hidden_BTD: Tensor, batch: PackedBatch) -> Tensor:
        """Return the log-odds of the positive over the negative answer, [B, M], float32."""
        head_VD = self.base.get_output_embeddings().weight
        yes_D, no_D = (head_VD[i].float() for i in (self.answers.positive, self.answers.negative))
        logits_BM: Tensor = self.answer_states(hidden_BTD, batch).float() @ (yes_D - no_D)
        return logits_BM

    def logits(self, hidden_BTD: Tensor, batch: PackedBatch) -> Tensor:
        """Return the logit of every candidate, [B, M], float32."""
        logits_BM = self.answer_logits(hidden_BTD, batch)
        if self.readout is None:
            return logits_BM
        added_BM: Tensor = self.readout(hidden_BTD, batch.segments_BT, logits_BM.shape[1])
        return logits_BM + added_BM

    @torch.inference_mode()
    def standardise_readout(self, batches: Sequence[Sequence[SlatePrompt]]) -> None:
        """Let the readout measure states in deviations from those of the base model here."""
        if self.readout is None:
            return
        found = []
        for prompts in batches:
            batch = pack(prompts, pad_id=self.pad_id, device=self.device)
            slots = batch.answers_BM.shape[1]
            hidden_BTD = self.hidden_states(batch, None)
            states_BMD = self.readout.states(hidden_BTD, batch.segments_BT, slots)
            found.append(states_BMD[batch.is_candidate_BM])
        self.readout.standardise(torch.cat(found))

    def forward(
        self,
        batch: PackedBatch,
        states: States,
        labels_BM: Tensor | None = None,
        loss: str = "answers",
        offsets_BM: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return logits [B, M], mixing weights [B, P, G, N] and, with labels, losses [B, M].

        `loss`: see `adapters.loss`. `offsets_BM` are logits of another model that stand in the loss
        beside this one's own.
        """
        weights_BPGN = self.weights(states)
        hidden_BTD = self.hidden_states(batch, self.segment_gates(weights_BPGN, batch))
        logits_BM = self.logits(hidden_BTD, batch)
        if labels_BM is None:
            return logits_BM, weights_BPGN, None
        both_BM = logits_BM if offsets_BM is None else logits_BM + offsets_BM
        if loss == "vocabulary":
            losses_BM = self._vocabulary_losses(self.answer_states(hidden_BTD, batch), labels_BM)
        elif loss == "pairs":
            losses_BM = pair_losses(both_BM, labels_BM, batch.is_candidate_BM)
        else:
            losses_BM = F.binary_cross_entropy_with_logits(both_BM, labels_BM, reduction="none")
            if loss == "joint":
                losses_BM = losses_BM + pair_losses(both_BM, labels_BM, batch.is_candidate_BM)
        return logits_BM, weights_BPGN, losses_BM

    def _vocabulary_losses(self, answer_BMD: Tensor, labels_BM: Tensor) -> Tensor:
        """Return the cross-entropy of each answer's token over the whole vocabulary, [B, M]."""
        logits_BMV = self.base.get_output_embeddings()(answer_BMD).float()
        answers = torch.tensor(
            [self.answers.negative, self.answers.positive], device=labels_BM.device
        )
        return F.cross_entropy(
            logits_BMV.flatten(0, 1), answers[labels_BM.long()].flatten(), reduction="none"
        ).view_as(labels_BM)

    # ----- serving

    @torch.inference_mode()
    def gates(self, output: CRMOutput) -> FloatArray:
        """Return one request's mixing weights, float32 [P, G, N]."""
        weights: FloatArray = self.weights(stack_states([output], self.device))[0].cpu().numpy()
        return weights

    @torch.inference_mode()
    def score(
        self, prompts: Sequence[SlatePrompt], gates: Sequence[FloatArray] | None
    ) -> list[FloatArray]:
        """Return logits [M] of each prompt, all prompts in one batch, each under its own gates.

        `gates[i]` is [P, G, N]; None scores with the base model alone, without the readout.
        """
        batch = pack(prompts, pad_id=self.pad_id, device=self.device)
        bound = None
        if gates is not None:
            segments = max(len(weights) for weights in gates)
            padded = np.zeros((len(gates), segments, *gates[0].shape[1:]), np.float32)
            for row, weights in enumerate(gates):
                padded[row, : len(weights)] = weights
            bound = self.segment_gates(torch.from_numpy(padded).to(self.device), batch)
        hidden_BTD = self.hidden_states(batch, bound)
        read = self.answer_logits if bound is None else self.logits
        logits_BM = read(hidden_BTD, batch).cpu().numpy()
        return [row[: len(p.blocks)] for row, p in zip(logits_BM, prompts, strict=True)]

    @torch.inference_mode()
    def read_prefixes(
        self, prefixes: Sequence[IntArray], gates: Sequence[FloatArray]
    ) -> list[PrefixStates]:
        """Return keys and values of prefixes, each under the first row of its gates [P, G, N].

        They hold for every block behind the prefix; under `target` gates, whose first row is that
        of one candidate, for that one.
        """
        batch = pack_row(prefixes, [0] * len(prefixes), device=self.device)
        weights_1RGN = torch.from_numpy(np.stack([each[0] for each in gates]))[None]
        layout = PrefixLayout([len(prefix) for prefix in prefixes])
        bound = Gates(weights_1RGN.to(self.device), batch.segments_BT - 1)
        self.hidden_states(batch, bound, layout)
        return layout.states()

    @torch.inference_mode()
    def score_behind(
        self, prefixes: Sequence[PrefixStates], blocks: Sequence[Sequence[IntArray]],
        gates: Sequence[FloatArray],
    ) -> list[FloatArray]:
        """Return logits [M] of each request's blocks behind its prefix: those of `score`.

        `gates[i]` is [P, G, N] as in `score`: one row, or one and that of each block.
        """
        flat = [block for of_request in blocks for block in of_request]
        starts = [
            prefix.num_tokens
            for prefix, of_request in zip(prefixes, blocks, strict=True) for _ in of_request
        ]
        batch = pack_row(flat, starts, device=self.device)
        own = [each[1:] if len(each) > 1 else each.repeat(len(of_request), 0)
               for each, of_request in zip(gates, blocks, strict=True)]
        weights_1SGN = torch.from_numpy(np.concatenate(own))[None].to(self.device)
        layout = BlockLayout(prefixes, [[len(block) for block in each] for each in blocks])
        hidden_1TD = self.hidden_states(
            batch, Gates(weights_1SGN, batch.segments_BT - 1), layout
        )
        logits_M = self.logits(hidden_1TD, batch)[0].cpu().numpy()
        return np.split(logits_M, np.cumsum([len(each) for each in blocks])[:-1])

    # ----- files

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """Return what training changes, by the names of the release file."""
        parts = self.adapter_parts().values()
        return {name: parameter for part in parts for name, parameter in part.items()}

    def adapter_parts(self) -> dict[str, dict[str, nn.Parameter]]:
        """Return the same as "bank", "gates" and, where there is one, "readout"."""
        parts: dict[str, dict[str, nn.Parameter]] = {"bank": {
            f"bank.{number}.{target}.{name}": parameter
            for number, block in enumerate(self.blocks)
            for _, target, bank in block.targets()
            for name, parameter in bank.named_parameters()
        }, "gates": {}}
        routers = {"user_router": self.user_router, "target_router": self.target_router}
        for prefix, router in routers.items():
            if router is not None:
                named = router.named_parameters()
                parts["gates"] |= {f"{prefix}.{name}": parameter for name, parameter in named}
        if self.readout is not None:
            named = self.readout.named_parameters()
            parts["readout"] = {f"readout.{name}": parameter for name, parameter in named}
        return parts

    def save(
        self, folder: str, weights: Mapping[str, FloatArray], crm_key: str, prompt: PromptConfig
    ) -> None:
        """Write bank.safetensors, bank.json and what the readout was standardised by.

        `weights` are this module's, by parameter name.
        """
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        tensors = {
            name: weights[names[id(parameter)]]
            for name, parameter in self.adapter_parameters().items()
        }
        if self.readout is not None:
            ends = "readout.weight", "readout.bias"
            plain = self.readout.plain(*(tensors[end] for end in ends))
            tensors |= dict(zip(ends, plain, strict=True))
            storage.write_tensors(storage.join(folder, STANDARD), {
                name: tensor.cpu().numpy() for name, tensor in self.readout.named_buffers()
            })
        storage.write_tensors(storage.join(folder, "bank.safetensors"), tensors)
        storage.write_json(storage.join(folder, "bank.json"), {
            "bank": self.config.settings(), "prompt": prompt.settings(),
            "state_dims": list(self.state_dims), "crm_key": crm_key,
        })

    def load_adapters(self, folder: str) -> None:
        """Read bank.safetensors; every weight must be there, and no other."""
        tensors = storage.read_tensors(storage.join(folder, "bank.safetensors"))
        parameters = self.adapter_parameters()
        if tensors.keys() != parameters.keys():
            odd = sorted(tensors.keys() ^ parameters.keys())[:5]
            raise ArtifactError(f"bank in {folder} does not fit the base model: {odd} differ")
        for name, parameter in parameters.items():
            if tensors[name].shape != tuple(parameter.shape):
                raise ArtifactError(
                    f"{name} in {folder} has shape {tensors[name].shape}, "
                    f"the base model needs {tuple(parameter.shape)}"
                )
            parameter.data.copy_(torch.from_numpy(tensors[name]))

    def start_from(self, folder: str) -> None:
        """Go on from a trained bank, its readout standardised as it was.

        An older folder does not say how: the readout keeps its standardisation then, and computes
        the same. Raises ArtifactError for a bank of other settings or of other CRM states.
        """
        facts = storage.read_json(storage.join(folder, "bank.json"))
        if tuple(facts["state_dims"]) != self.state_dims:
            raise ArtifactError(
                f"gates in {folder} read CRM states of widths {facts['state_dims']}, the CRM gives "
                f"{list(self.state_dims)}: keep crm.state_dim and crm.hidden_dims"
            )
        now, then = (each.settings(without=DROPOUTS) for each in (self.config, _bank_of(facts)))
        odd = [f"bank.{name} {then[name]!r}, now {now[name]!r}" for name in now
               if now[name] != then[name]]
        if odd:
            raise ArtifactError(f"bank in {folder} was trained with {', '.join(odd)}")
        self.load_adapters(folder)
        if self.readout is not None:
            if storage.exists(storage.join(folder, STANDARD)):
                self.readout.load_standard(storage.read_tensors(storage.join(folder, STANDARD)))
            plain = (self.readout.weight, self.readout.bias)
            self.readout.take_over(*(each.detach().cpu().numpy() for each in plain))

    @classmethod
    def load(cls, base_config: BaseModelConfig, folder: str) -> Self:
        """Return the released model, frozen and in eval mode."""
        facts = storage.read_json(storage.join(folder, "bank.json"))
        tokenizer, base = load_base_model(base_config)
        model = cls(
            base, tokenizer, _bank_of(facts), PromptConfig.model_validate(facts["prompt"]),
            tuple(facts["state_dims"]),
        )
        model.load_adapters(folder)
        model.requires_grad_(False).eval()
        return model


def _bank_of(facts: Mapping[str, Any]) -> BankConfig:
    """Return the settings in a bank.json; an older one knows no readout."""
    return BankConfig.model_validate({"readout": "answer"} | facts["bank"])
