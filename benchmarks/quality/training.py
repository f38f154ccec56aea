"""One row of a plan: train, score, measure; every part is kept, so it can be stopped anywhere."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from benchmarks.quality.comparison import asked_rows
from benchmarks.quality.ground import Ground, States
from benchmarks.quality.plan import Plan
from benchmarks.quality.references import FIXED, GRIDS, PEERS, References
from benchmarks.quality.results import Results
from benchmarks.quality.rows import ROWS, Budget
from engine import storage
from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.metrics import ctr
from engine.models.base import worker_dtype
from engine.models.fusion import Fusion
from engine.stages.adapters import read_learning, train_adapters
from engine.stages.comparison import describe_gates, measure_models, table_of, user_gates
from engine.stages.evaluation import FUSION_FILE, fit_fusion
from engine.stages.prompts import build_prompts
from engine.stages.score_rows import read_sample
from engine.stages.scores import score_prompts
from engine.stages.slate_gates import read_gates
from engine.types import EVALUATED, Window

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trained:
    """What one training of a row leaves."""

    bank: Artifact
    scores: Artifact
    fusion: Artifact

    def fitted(self) -> Fusion:
        """Return the fusion with the CRM, fitted on validation."""
        return Fusion.from_json(storage.read_json(self.fusion.path(FUSION_FILE)))


class Bench:
    """The rows of one plan."""

    def __init__(self, plan: Plan, results: Results | None = None) -> None:
        """`results`: rows that need not be trained again."""
        self.plan, self.results = plan, results
        self.config = plan.engine_config()
        self.ground = Ground(self.config)

    def references(self) -> References:
        """Return the rows without a language model."""
        return References(self.ground, self.plan.seeds)

    def train(self, name: str, seed: int) -> Trained:
        """Return the row trained with this seed at the rate that won with the first one."""
        return self._train(name, seed, self.best_rate(name))

    def best_rate(self, name: str) -> float:
        """Return the multiple of the learning rates with the best validation AUC.

        It is that of the row itself, or else of the first row of its kind that tries some.
        """
        chooser, rates = self._rates(name)
        if len(rates) == 1:
            return rates[0]
        done = self.done(chooser, self.plan.seeds[0])
        if done is not None:
            return float(done["rate"])
        aucs = self.validation_aucs(chooser)
        return max(aucs, key=lambda rate: aucs[rate])

    def _rates(self, name: str) -> tuple[str, tuple[float, ...]]:
        """Return the row whose choice this row takes, and what that row chooses from."""
        tried = self.plan.rates
        kind = (each for each in tried if ROWS[each].is_bank == ROWS[name].is_bank)
        chooser = name if name in tried else next(kind, name)
        return chooser, tried.get(chooser, (1.0,))

    def done(self, name: str, seed: int) -> dict[str, Any] | None:
        """Return the JSON of a row that was trained under these settings, here or elsewhere."""
        results = self.results
        return None if results is None else results.row(name, seed, self.settings_digest(name))

    def settings_digest(self, name: str) -> str:
        """Return a digest of what a row is trained and measured with, seed and rate left out."""
        row, plan = ROWS[name], self.plan
        how = [settings_here(plan.row_config(row)), row.in_sample_crm, row.equal_size, row.budget,
               self._rates(name)]
        return storage.sha256(storage.dump_json(how))[:12]

    def ground_digest(self) -> str:
        """Return a digest of what the rows without a language model are made with."""
        how = [settings_here(self.config), self.plan.seeds, PEERS, GRIDS, FIXED]
        return storage.sha256(storage.dump_json(how))[:12]

    def asked_rows(self, name: str) -> pd.DataFrame:
        """Return the rows of the test sample of a row's scope."""
        prompts = self._prompts(self.plan.row_config(ROWS[name]))
        return asked_rows(self.ground.slates, prompts, self.ground.training_events())

    def validation_aucs(self, name: str) -> dict[float, float]:
        """Return the validation AUC of each rate that the row tries, with the first seed."""
        found = {}
        for rate in self.plan.rates[name]:
            sample = read_sample(self.validate(name, rate)[2], Window.VALIDATION)
            found[rate] = ctr.auc(sample.rows.labels_N, sample.scores["llm_logit"])
        return found

    def validate(
        self, name: str, rate: float, changes: Mapping[str, Any] | None = None
    ) -> tuple[Artifact, Artifact, Artifact]:
        """Train with the first seed; return prompts, bank and the scores of validation alone."""
        config, prompts, states = self.inputs(name, rate, changes)
        bank = self._bank(config, prompts, states, self.plan.seeds[0])
        return prompts, bank, self._scores(config, prompts, states, bank, (Window.VALIDATION,))

    def _train(self, name: str, seed: int, rate: float) -> Trained:
        config, prompts, states = self.inputs(name, rate)
        bank = self._bank(config, prompts, states, seed)
        scores = self._scores(config, prompts, states, bank)
        return Trained(bank, scores, fit_fusion(self.ground.root, config, scores))

    def _bank(
        self, config: EngineConfig, prompts: Artifact, states: States, seed: int
    ) -> Artifact:
        root = self.ground.root
        return train_adapters(root, config, prompts, states.crm, states.scores, seed=seed)

    def _scores(
        self, config: EngineConfig, prompts: Artifact, states: States, bank: Artifact,
        windows: tuple[Window, ...] = EVALUATED,
    ) -> Artifact:
        ground = self.ground
        return score_prompts(
            ground.root, config, ground.slates, prompts, states.scores, bank, ground.popularity,
            windows=windows,
        )

    def inputs(
        self, name: str, rate: float = 1.0, changes: Mapping[str, Any] | None = None
    ) -> tuple[EngineConfig, Artifact, States]:
        """Return a row's configuration, prompts, and the CRM behind its gates.

        `changes` are settings by their dotted names, beside those of the row.
        """
        row = ROWS[name]
        more = dict(changes or {})
        if row.equal_size:
            rank = self._equal_rank()
            more |= {"bank.rank": rank, "bank.alpha": 2.0 * rank}
        config = self.plan.row_config(row, rate, more)
        prompts = self._prompts(config)
        if row.budget is Budget.TOKENS:
            tokens_each = prompts.facts["bank_tokens"] / config.adapters.max_slates
            slates = round(self._prompts(self.config).facts["bank_tokens"] / tokens_each)
            config = self.plan.row_config(row, rate, {**more, "adapters.max_slates": slates})
            prompts = self._prompts(config)
        states = self._in_sample if row.in_sample_crm else self._out_of_time
        return config, prompts, states

    def _prompts(self, config: EngineConfig) -> Artifact:
        ground = self.ground
        return build_prompts(
            ground.root, config, ground.histories, ground.slates, ground.item_text
        )

    @cached_property
    def _out_of_time(self) -> States:
        return self.ground.states()

    @cached_property
    def _in_sample(self) -> States:
        return self.ground.states(in_sample=True)

    def _equal_rank(self) -> int:
        """Return the rank of one LoRA with as many weights as the bank and its gates."""
        seed, bank = self.plan.seeds[0], self.config.bank
        done = self.done("bank-user", seed)
        size = done["trainable_parameters"] if done else parameters_of(
            self.train("bank-user", seed).bank
        )
        per_rank = size["bank"] / (bank.rank * bank.num_adapters)
        rank: int = round((size["bank"] + size["gates"]) / per_rank)
        return rank


def describe(bench: Bench, name: str, seed: int, trained: Trained) -> dict[str, Any]:
    """Return the JSON of one trained row: cost, metrics on the test sample, gates."""
    row, config = ROWS[name], bench.config
    facts, manifest = trained.bank.facts, trained.bank.manifest()
    sample = read_sample(trained.scores, Window.TEST)
    measured = measure_models(
        sample, trained.fitted(), num_draws=config.evaluation.bootstrap_draws, seed=config.run.seed
    )
    validation = read_sample(trained.scores, Window.VALIDATION)
    gates = read_gates(trained.scores) if row.is_routed else None
    _, prompts, _ = bench.inputs(name, bench.best_rate(name))
    epochs = config.adapters.epochs
    return {
        "row": name, "title": row.title, "seed": seed, "settings": dict(row.settings),
        "settings_digest": bench.settings_digest(name),
        **training_of(bench.plan.row_config(row), manifest), "rate": bench.best_rate(name),
        "tuning": {
            str(rate): auc for rate, auc in bench.validation_aucs(name).items()
        } if name in bench.plan.rates else {},
        "trainable_parameters": parameters_of(trained.bank) | (
            {} if row.is_routed else {"gates": 0}
        ),
        "training": {
            "slates": prompts.facts["bank_prompts"], "labels": prompts.facts["bank_rows"] * epochs,
            "tokens": facts["training_tokens"], "steps": facts["steps"],
            "final_loss": facts["final_loss"], "seconds": manifest["seconds"],
        },
        "learning": read_learning(trained.bank.uri),
        "scoring_seconds": trained.scores.manifest()["seconds"],
        "validation_auc": ctr.auc(validation.rows.labels_N, validation.scores["llm_logit"]),
        "fusion": storage.read_json(trained.fusion.path(FUSION_FILE))["full"],
        "test": table_of(sample, measured),
        "gates": describe_gates(
            None if gates is None else user_gates(trained.scores, gates)
        )["gates"],
        "artifacts": {"bank": trained.bank.key, "scores": trained.scores.key},
    }


def settings_here(config: EngineConfig) -> dict[str, Any]:
    """Return what a result depends on: not its place, nor the nights after it, but the type that
    `auto` means here.
    """
    settings = config.settings()
    del settings["night"]
    for place in ("root", "registry", "state"):
        del settings["run"][place]
    settings["base_model"]["dtype"] = dtype_name(config)
    return settings


def training_of(config: EngineConfig, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return when and by which code a bank with this manifest was trained, and what readers of a
    result ask first: how it is read and taught.
    """
    return {
        "trained_s": manifest["made_s"], "trained_by": manifest["code"],
        "recipe": {
            "readout": config.bank.readout, "loss": config.adapters.loss,
            "batch_slates": config.adapters.batch_slates, "dtype": dtype_name(config),
        },
    }


def dtype_name(config: EngineConfig) -> str:
    """Return the type of the frozen weights here; it shows in item vectors, so in prompts and CRM,
    too.
    """
    return worker_dtype(config.base_model, use_gpu=config.adapters.use_gpu)


def parameters_of(bank: Artifact) -> dict[str, int]:
    """Return how many weights of each part are trained."""
    return {part: bank.facts[f"{name}_parameters"]
            for part, name in (("bank", "bank"), ("gates", "gate"), ("readout", "readout"))}
