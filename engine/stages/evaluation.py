"""Stages: scores of validation -> fusion (kind "fusion"); scores of test -> metrics ("evaluation").

    fusion.json   weights of each mode of answering, with the log losses on validation
    report.json   tables of metrics with 95% intervals, paired differences, gates, quality lines

Everything is chosen on validation. The test window is measured here, by `retrieval` (Recall@200)
and by `crm_seeds` (noise between trainings), and later by exams; nothing is chosen by it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.metrics.ctr import log_loss
from engine.models.fusion import Fusion
from engine.stages.comparison import compare_models
from engine.stages.quality import find_table, quality_lines
from engine.stages.score_rows import read_sample
from engine.types import Window

FUSION_FILE = "fusion.json"
REPORT_FILE = "report.json"


def fit_fusion(run: str, config: EngineConfig, scores: Artifact) -> Artifact:
    """Return fusion.json, fitted on the validation rows that the language model scored."""
    def write(folder: str) -> dict[str, Any]:
        sample = read_sample(scores, Window.VALIDATION)
        labels = sample.rows.labels_N
        crm, llm = sample.scores["crm_logit"], sample.scores["llm_logit"]
        fusion = Fusion.fit(crm, llm, labels, sample.scores["popularity"])
        losses = {
            "crm": log_loss(labels, crm),
            "crm_calibrated": log_loss(labels, fusion.crm.apply(crm)),
            "fused": log_loss(labels, fusion.combine(crm, llm)),
        }
        validation = {
            "rows": len(labels), "users": sample.rows.num_users, "log_loss": losses,
            "score_spread": {"crm": float(np.std(crm)), "llm": float(np.std(llm))},
        }
        value = {**fusion.to_json(), "validation": validation}
        storage.write_json(storage.join(folder, FUSION_FILE), value)
        return value

    return artifacts.make(run, "fusion", {}, [scores], write)


def evaluate(
    run: str,
    config: EngineConfig,
    scores: Artifact,
    fusion: Artifact,
    *,
    recall: Mapping[str, float] | None = None,
    crm_seeds: Sequence[Mapping[str, Any]] = (),
) -> Artifact:
    """Return report.json of the test window (and of validation, beside it).

    recall: Recall@200 of retrieval on test, {"crm", "popularity"}. crm_seeds: one mapping for each
    additional CRM, {"seed", "window": "crm" or "full", "auc", "slate_auc", "gauc"}.
    """
    settings = {
        "seed": config.run.seed, "max_rows": config.evaluation.max_rows,
        "draws": config.evaluation.bootstrap_draws, "recall": dict(recall or {}),
        "targets": config.evaluation.targets.settings(),
        "references": list(config.evaluation.references),
        "crm_seeds": [dict(each) for each in crm_seeds],
    }

    def write(folder: str) -> dict[str, Any]:
        weights = storage.read_json(fusion.path(FUSION_FILE))
        compared = compare_models(scores, Fusion.from_json(weights), config)
        inputs = scores.manifest()["inputs"]
        report = {
            **compared, "fusion": weights, "recall": dict(recall or {}),
            "crm_seeds": group_seeds(crm_seeds), "settings": settings,
            "artifacts": {"scores": scores.key, "fusion": fusion.key, **inputs},
        }
        lines = quality_lines(report, config.evaluation.targets)
        report["quality"] = [line.to_json() for line in lines]
        storage.write_json(storage.join(folder, REPORT_FILE), report)
        return headline(report)

    return artifacts.make(run, "evaluation", settings, [scores, fusion], write)


def headline(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the test metrics by path ("llm/auc"), for logs and a release's manifest."""
    facts: dict[str, Any] = {}
    for rows in ("all", "sample"):
        for model, values in find_table(report, "test", rows).get("models", {}).items():
            for metric, interval in values.items():
                facts[f"{rows}/{model}/{metric}"] = interval and round(interval["value"], 5)
    gates = report["gates"] or {}
    facts.update({f"gates/{name}": gates.get(name) for name in ("entropy_share", "variation")})
    facts["quality"] = {line["name"]: line["passed"] for line in report["quality"]}
    return facts


def group_seeds(crm_seeds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs of each training window with the mean, lowest and highest of each metric."""
    groups = []
    for window in dict.fromkeys(str(each["window"]) for each in crm_seeds):
        runs = [dict(each) for each in crm_seeds if each["window"] == window]
        names = [name for name in ("auc", "slate_auc", "gauc") if all(name in run for run in runs)]
        values = {name: [float(run[name]) for run in runs] for name in names}
        groups.append({
            "window": window, "runs": runs,
            "mean": {name: float(np.mean(each)) for name, each in values.items()},
            "low": {name: min(each) for name, each in values.items()},
            "high": {name: max(each) for name, each in values.items()},
        })
    return groups
