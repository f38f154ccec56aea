"""Scores of validation and test -> tables of metrics for each model, window, rows and kind.

    rows "all"      every row of the window (bounded by evaluation.max_rows): popularity and CRM
    rows "sample"   the rows that the language model scored: all models, paired
    kind            "all"; for implicit feedback also "repeat" and "new" apart
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.errors import ArtifactError
from engine.metrics import ctr
from engine.metrics.estimates import Estimate, Interval, differences
from engine.metrics.gates import gate_statistics
from engine.models.fusion import Fusion
from engine.stages.score_rows import ScoreRows, read_all, read_sample, sample_slates
from engine.stages.slate_gates import SlateGates, read_gates
from engine.types import FeedbackKind, FloatArray, Window

DIFFERENCES = (
    ("llm", "zero_shot"), ("llm", "shuffled"), ("llm", "popularity"),
    ("fused", "crm"), ("fused", "crm_calibrated"), ("fused", "llm"), ("crm_row", "crm"),
)
KINDS = {"repeat": FeedbackKind.REPEAT, "new": FeedbackKind.NEW}
HISTORY_LENGTHS = {"under 20": (0, 20), "20 to 99": (20, 100), "100 to 499": (100, 500),
                   "500 and over": (500, 2**31)}
Measured = Mapping[str, Mapping[str, Estimate]]
"""Model -> metric -> estimate."""
MAX_HEAT_MAP_USERS = 40
MIN_CHANGE = 0.01
"""A logit that moves less is taken as rounding (bfloat16, another batch)."""


def compare_models(scores: Artifact, fusion: Fusion, config: EngineConfig) -> dict[str, Any]:
    """Return JSON: tables, history_lengths, reliability, shuffle, gates, gates_heat_map."""
    tables, lengths = [], []
    for window in (Window.VALIDATION, Window.TEST):
        name = window.name.lower()
        everything = read_all(scores, window, max_rows=config.evaluation.max_rows)
        sample = read_sample(scores, window)
        for rows, group in (("all", everything), ("sample", sample)):
            tables += _tables(name, rows, group, fusion, config)
        if window is Window.TEST:
            lengths = _by_history_length(sample, fusion, config)
    logits = model_logits(sample, fusion)
    return {
        "tables": tables, "history_lengths": lengths, "reliability": reliability_of(sample, logits),
        "shuffle": _shuffle_effect(logits), **_gates(scores),
    }


def model_logits(group: ScoreRows, fusion: Fusion) -> dict[str, FloatArray]:
    """Return each model's logits, by the names used in reports.

    popularity: calibrated on validation. crm_row, crm: the CRM's own, with the history before the
    row and before the slate. crm_calibrated: the answer without the language model. zero_shot,
    llm, shuffled: the language model's own. fused: the final answer.
    """
    scores = group.scores
    logits = {
        "popularity": fusion.popularity.apply(scores["popularity"]),
        "crm_row": scores["crm_row_logit"], "crm": scores["crm_logit"],
        "crm_calibrated": fusion.crm.apply(scores["crm_logit"]),
    }
    for name in ("zero_shot", "llm", "shuffled"):
        if f"{name}_logit" in scores:
            logits[name] = scores[f"{name}_logit"]
    if "llm" in logits:
        logits["fused"] = fusion.combine(scores["crm_logit"], scores["llm_logit"])
    return logits


def _tables(
    window: str, rows: str, group: ScoreRows, fusion: Fusion, config: EngineConfig
) -> list[dict[str, Any]]:
    groups = {"all": group}
    for name, kind in KINDS.items():
        if (group.kinds == kind).any():
            groups[name] = group.of_kind(kind)
    return [
        {"window": window, "rows": rows, "kind": name,
         **table_of(each, _measure(each, fusion, config))}
        for name, each in groups.items()
    ]


def measure_models(
    group: ScoreRows, fusion: Fusion, *, num_draws: int, seed: int
) -> Measured:
    """Return every metric of every model that has scores; all are paired."""
    return {
        name: ctr.measure(group.rows, logits, num_draws=num_draws, seed=seed)
        for name, logits in model_logits(group, fusion).items()
    }


def table_of(group: ScoreRows, measured: Measured) -> dict[str, Any]:
    """Return JSON: counts, each model's intervals, and the paired differences."""
    return {
        **counts_of(group),
        "models": {
            name: {metric: as_json(each.interval()) for metric, each in values.items()}
            for name, values in measured.items()
        },
        "differences": {
            f"{one} - {other}": {
                name: as_json(each)
                for name, each in differences(measured[one], measured[other]).items()
            }
            for one, other in DIFFERENCES if one in measured and other in measured
        },
    }


def _measure(group: ScoreRows, fusion: Fusion, config: EngineConfig) -> Measured:
    return measure_models(
        group, fusion, num_draws=config.evaluation.bootstrap_draws, seed=config.run.seed
    )


def counts_of(group: ScoreRows) -> dict[str, int]:
    """Return rows, users and positives."""
    return {
        "num_rows": len(group.rows), "num_users": group.rows.num_users,
        "num_positives": int(group.rows.labels_N.sum()), "num_rows_in_window": group.total,
    }


def as_json(interval: Interval | None) -> dict[str, float] | None:
    """Return the JSON form; None stays None."""
    return None if interval is None else interval.to_json()


def _by_history_length(
    sample: ScoreRows, fusion: Fusion, config: EngineConfig
) -> list[dict[str, Any]]:
    buckets = []
    for name, (low, high) in HISTORY_LENGTHS.items():
        inside = (sample.history_lengths >= low) & (sample.history_lengths < high)
        if inside.any():
            group = sample.where(inside)
            auc = {
                model: estimates["auc"]
                for model, estimates in _measure(group, fusion, config).items()
            }
            buckets.append({
                "history_length": name, **counts_of(group),
                "auc": {model: as_json(each.interval()) for model, each in auc.items()},
                "fused - crm": as_json(auc["fused"].minus(auc["crm"]).interval()),
            })
    return buckets


def reliability_of(
    sample: ScoreRows, logits: Mapping[str, FloatArray]
) -> dict[str, Any]:
    """Return the points of each model's reliability diagram."""
    return {
        name: [
            {"probability": point.mean_probability, "rate": point.positive_rate,
             "rows": point.num_rows}
            for point in ctr.reliability(sample.rows.labels_N, logits[name])
        ]
        for name in ("crm", "crm_calibrated", "llm", "fused") if name in logits
    }


def _shuffle_effect(logits: Mapping[str, FloatArray]) -> dict[str, float] | None:
    if "shuffled" not in logits:
        return None
    change = np.abs(logits["llm"].astype(np.float64) - logits["shuffled"])
    return {
        "changed_share": float((change > MIN_CHANGE).mean()),
        "mean_absolute_change": float(change.mean()),
    }


def _gates(scores: Artifact) -> dict[str, Any]:
    """Return statistics over users and the heat map's rows, from each user's first test slate."""
    found = read_gates(scores)
    return describe_gates(None if found is None else user_gates(scores, found))


def describe_gates(gates_UGK: FloatArray | None) -> dict[str, Any]:
    """Return JSON of gates, one entry for each user: statistics, and rows of the heat map."""
    if gates_UGK is None:
        return {"gates": None, "gates_heat_map": []}
    found = gate_statistics(gates_UGK)
    heat_map_UK = gates_UGK[:MAX_HEAT_MAP_USERS].mean(axis=1)
    return {
        "gates": {
            "num_users": found.num_users, "num_gates": found.num_gates,
            "num_adapters": found.num_adapters, "entropy": found.entropy,
            "entropy_share": found.entropy_share, "load": list(found.load_K),
            "load_entropy_share": found.load_entropy_share, "variation": found.variation,
            "variation_by_gate": list(found.variation_G), "spread": found.spread,
        },
        "gates_heat_map": np.round(heat_map_UK.astype(np.float64), 4).tolist(),
    }


def user_gates(scores: Artifact, found: SlateGates) -> FloatArray:
    """Return the gates of each test user's first slate [U, G, N]."""
    places = {slate: place for place, slate in enumerate(found.slate_ids)}
    firsts: dict[str, int] = {}
    for slate, user in sample_slates(scores, Window.TEST).items():
        if slate not in places:
            raise ArtifactError(f"slate {slate!r} of the test sample has no gates in {scores.uri}")
        firsts.setdefault(user, places[slate])
    return found.gates_SGK[list(firsts.values())]
