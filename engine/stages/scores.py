"""bank + prompts + CRM scores -> every score of the validation and test windows.

    scores/part-*.parquet     schema.SCORES: all rows; language-model columns on the sample
    gates.safetensors         "gates" [slates, G, N]: user mixes of the sample, by slate id
    slates.json               their slate and user ids

The language model scores the sample as released; the test sample also as `evaluation.references`
ask: without the bank (zero-shot) and with the gates of another user (a derangement). Ray Data
actors hold the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from engine import storage
from engine.artifacts import Artifact, make
from engine.config import EngineConfig
from engine.data.schema import SCORES, part_name
from engine.models.personalized import PersonalizedLLM
from engine.models.popularity import FILE as POPULARITY
from engine.models.popularity import Popularity
from engine.stages.partitions import map_partitions, map_with_actors
from engine.stages.progress import counted
from engine.stages.slate_gates import SlateGates
from engine.training.adapter_examples import AdapterExample, read_examples
from engine.types import EVALUATED, CRMOutput, FloatArray, GateInput, Window

Row = tuple[str, int]
"""Slate id and slot."""
Logits = tuple[float | None, ...]
"""Values of COLUMNS."""
COLUMNS = ("llm_logit", "zero_shot_logit", "shuffled_logit")
VERSION = 2
"""Of what the same settings give. 2: hybrid gates of another user keep the candidate's states."""


def score_prompts(
    run: str,
    config: EngineConfig,
    slates: Artifact,
    prompts: Artifact,
    crm_scores: Artifact,
    bank: Artifact,
    popularity: Artifact,
    *,
    windows: tuple[Window, ...] = EVALUATED,
) -> Artifact:
    """Score the sample with the language model and join it with the other scores of all rows.

    The language model scores the sample of `windows` alone; a sweep needs only validation.
    """
    inputs = [slates, prompts, crm_scores, bank, popularity]
    settings = {
        "seed": config.run.seed, "references": list(config.evaluation.references),
        "windows": [window.name for window in windows],
    }
    return make(run, "scores", settings, inputs, partial(
        _write, config=config, slates=slates, prompts=prompts, crm_scores=crm_scores, bank=bank,
        popularity=popularity, windows=windows,
    ), version=VERSION)


def _write(
    folder: str,
    config: EngineConfig,
    slates: Artifact,
    prompts: Artifact,
    crm_scores: Artifact,
    bank: Artifact,
    popularity: Artifact,
    windows: tuple[Window, ...],
) -> Mapping[str, Any]:
    partitions = range(config.histories.num_partitions)
    examples = read_examples(
        [prompts.path(part_name("prompts", k)) for k in partitions],
        [crm_scores.path(part_name("scores", k)) for k in partitions],
        windows,
    )
    donors = derange(examples, config.run.seed)
    scored, gates = score_examples(config, bank.uri, examples, donors)
    _write_gates(folder, examples, gates)
    joined = partial(
        _write_partition, folder=folder, slates=slates, crm_scores=crm_scores, scored=scored,
        popularity=Popularity.load(popularity.path(POPULARITY)).scores,
    )
    counts = map_partitions(joined, partitions)
    return {"rows": sum(counts), "llm_rows": len(scored)}


# ----- language model


def derange(examples: Sequence[AdapterExample], seed: int) -> list[int]:
    """Return for each example one of another user: the next user's with the most candidates.

    Users stand on a seeded circle and borrow from the next: no user keeps its own. A single user
    has nobody to borrow from and keeps its own.
    """
    users = sorted({example.user_id for example in examples})
    order = np.random.default_rng(seed).permutation(len(users))
    circle = [users[place] for place in order]
    following = dict(zip(circle, circle[1:] + circle[:1], strict=True))
    by_user: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        by_user.setdefault(example.user_id, []).append(index)
    widest = {
        user: max(indices, key=lambda i: len(examples[i].labels))
        for user, indices in by_user.items()
    }
    return [widest[following[example.user_id]] for example in examples]


def borrowed(own: CRMOutput, donor: CRMOutput, gate: GateInput) -> CRMOutput:
    """Return the output with another user's state.

    Gates that read the user keep the candidate's states. Those that read these alone take the
    donor's, of the donor's items (the CRM joins user and item in one state); candidates beyond the
    donor's wrap round.
    """
    if gate is not GateInput.TARGET:
        return replace(own, user_state_D=donor.user_state_D)
    slots = np.arange(len(own.logits_M)) % len(donor.logits_M)
    return replace(own, target_states_MD=donor.target_states_MD[slots])


class PromptScorer:
    """A Ray Data actor that holds the language model and the sample."""

    def __init__(
        self, config: EngineConfig, bank: str, examples: ray.ObjectRef[Any], donors: Sequence[int]
    ) -> None:
        torch.set_num_threads(config.adapters.threads_per_worker)
        self.model = PersonalizedLLM.load(config.base_model, bank)
        self.examples: list[AdapterExample] = ray.get(examples)
        self.donors = donors
        self.references = config.evaluation.references

    def __call__(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Score the examples with these numbers in one forward pass."""
        numbers = [int(number) for number in batch["numbers"]]
        chosen = [self.examples[number] for number in numbers]
        gates = [self.model.gates(example.crm) for example in chosen]
        logits = self.model.score([example.prompt for example in chosen], gates)
        columns = [np.full((len(row), len(COLUMNS)), np.nan, np.float32) for row in logits]
        for column, row in zip(columns, logits, strict=True):
            column[:, 0] = row
        self._score_references(numbers, columns)
        return [
            {"number": number, "logits": column.tobytes(),
             "gates": weights[0].astype(np.float32).tobytes()}
            for number, column, weights in zip(numbers, columns, gates, strict=True)
        ]

    def _score_references(self, numbers: Sequence[int], columns: Sequence[FloatArray]) -> None:
        """Fill the reference logits of the test examples."""
        places = [p for p, n in enumerate(numbers) if self.examples[n].window == Window.TEST]
        if not places:
            return
        prompts = [self.examples[numbers[p]].prompt for p in places]
        for name in self.references:
            gates = None
            if name == "shuffled":
                gates = [self._foreign_gates(numbers[place]) for place in places]
            column = COLUMNS.index(f"{name}_logit")
            for place, logits in zip(places, self.model.score(prompts, gates), strict=True):
                columns[place][:, column] = logits

    def _foreign_gates(self, number: int) -> FloatArray:
        donor = self.examples[self.donors[number]]
        gate = self.model.config.gate
        return self.model.gates(borrowed(self.examples[number].crm, donor.crm, gate))


def score_examples(
    config: EngineConfig, bank: str, examples: Sequence[AdapterExample], donors: Sequence[int]
) -> tuple[dict[Row, Logits], list[FloatArray]]:
    """Return the logits of every row and the first gates of every example.

    As many actors as the bank's training has workers. What stands in a batch does not depend on
    their number.
    """
    shape = tuple(_gate_shape(bank))
    shared = ray.put(list(examples))
    longest_first = sorted(range(len(examples)), key=lambda i: (-examples[i].num_tokens, i))
    size = config.evaluation.batch_slates
    batches = [
        {"numbers": longest_first[start : start + size]}
        for start in range(0, len(longest_first), size)
    ]
    results = map_with_actors(
        PromptScorer, (config, bank, shared, list(donors)), batches,
        num_actors=config.adapters.num_workers, num_cpus=config.adapters.threads_per_worker,
        use_gpu=config.adapters.use_gpu,
    )
    scored: dict[Row, Logits] = {}
    gates: list[FloatArray] = [np.zeros(0)] * len(examples)
    for result in counted(results, len(examples), "scores"):
        example = examples[result["number"]]
        logits = np.frombuffer(result["logits"], np.float32).reshape(-1, len(COLUMNS))
        for slot, row in enumerate(logits):
            scored[example.slate_id, example.first_slot + slot] = tuple(
                None if np.isnan(value) else float(value) for value in row
            )
        gates[result["number"]] = np.frombuffer(result["gates"], np.float32).reshape(shape)
    return scored, gates


def _gate_shape(bank: str) -> list[int]:
    """Return [G, N] of a bank's files."""
    tensors = storage.read_tensors(storage.join(bank, "bank.safetensors"))
    routers = [tensor for name, tensor in tensors.items() if name.endswith("router.b2_GN")]
    return list(routers[0].shape)


def _write_gates(
    folder: str, examples: Sequence[AdapterExample], gates: Sequence[FloatArray]
) -> None:
    """Write the first gates of each slate: the user mix, or its first candidate's (target)."""
    first = [number for number, example in enumerate(examples) if example.first_slot == 0]
    SlateGates(
        np.stack([gates[number] for number in first]),
        [examples[number].slate_id for number in first],
        [examples[number].user_id for number in first],
    ).write(folder)


# ----- join


def _write_partition(
    partition: int,
    folder: str,
    slates: Artifact,
    crm_scores: Artifact,
    scored: Mapping[Row, Logits],
    popularity: FloatArray,
) -> int:
    """Write all scores of one partition's validation and test rows; return their number."""
    outputs = {
        row["slate_id"]: row
        for row in storage.read_table(
            crm_scores.path(part_name("scores", partition)), ["slate_id", "logits", "row_logits"]
        ).to_pylist()
    }
    rows = []
    for slate in storage.read_table(slates.path(part_name("slates", partition))).to_pylist():
        if slate["window"] in EVALUATED:
            rows += _rows(slate, outputs[slate["slate_id"]], scored, popularity)
    storage.write_table(
        storage.join(folder, part_name("scores", partition)),
        pa.Table.from_pylist(rows, schema=SCORES),
    )
    return len(rows)


def _rows(
    slate: Mapping[str, Any],
    output: Mapping[str, Any],
    scored: Mapping[Row, Logits],
    popularity: FloatArray,
) -> list[dict[str, Any]]:
    rows = []
    for slot, item in enumerate(slate["items"]):
        language = scored.get((slate["slate_id"], slot), (None, None, None))
        rows.append({
            "user_id": slate["user_id"], "slate_id": slate["slate_id"], "window": slate["window"],
            "item": item, "label": slate["labels"][slot], "kind": slate["kinds"][slot],
            "timestamp_s": slate["timestamps_s"][slot], "history_length": slate["history_length"],
            "popularity": float(popularity[item]), "crm_row_logit": output["row_logits"][slot],
            "crm_logit": output["logits"][slot], **dict(zip(COLUMNS, language, strict=True)),
        })
    return rows


