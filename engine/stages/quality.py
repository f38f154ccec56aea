"""Measured values and targets -> the quality lines of a run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engine.config import TargetsConfig


@dataclass(frozen=True, slots=True)
class QualityLine:
    """One thing that a run should reach."""

    name: str
    target: str
    measured: str
    passed: bool

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


def quality_lines(report: Mapping[str, Any], targets: TargetsConfig) -> list[QualityLine]:
    """Return the lines that the targets ask for, from an evaluation's report.

    A line whose value could not be measured is missed, never left out; one about a reference that
    `evaluation.references` does not ask for is not asked for either.
    """
    lines, references = [], report["settings"]["references"]
    if targets.crm_auc is not None:
        value, source = _crm_auc(report, "crm")
        lines.append(_at_least(f"CRM out of time, test AUC, {source}", value, targets.crm_auc))
    if targets.crm_full_auc is not None:
        value, source = _crm_auc(report, "full")
        lines.append(
            _at_least(f"CRM on the whole training window, test AUC, {source}", value,
                      targets.crm_full_auc)
        )
    if report["recall"]:
        lines.append(_recall_line(report["recall"]))
    sample = find_table(report, "test", "sample")
    if targets.llm_auc is not None:
        value = _value(sample, "models", "llm", "auc")
        lines.append(_at_least("LLM alone, test AUC", value, targets.llm_auc))
    if "zero_shot" in references:
        lines.append(_interval_line(sample, "llm - zero_shot", "LLM above zero-shot", "low"))
    lines.append(_interval_line(sample, "fused - crm", "fused not below the CRM", "high"))
    gates = report.get("gates") or {}
    if targets.gate_variation is not None:
        lines.append(_at_least(
            "mean total variation between two users' gates", gates.get("variation"),
            targets.gate_variation,
        ))
    if "shuffled" in references:
        lines.append(_shuffle_line(report.get("shuffle")))
    return lines


def find_table(
    report: Mapping[str, Any], window: str, rows: str, kind: str = "all"
) -> Mapping[str, Any]:
    """Return one table of an evaluation's report; empty if it has none of this name."""
    for table in report["tables"]:
        if (table["window"], table["rows"], table["kind"]) == (window, rows, kind):
            found: Mapping[str, Any] = table
            return found
    return {}


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """Return what a job prints of an evaluation: fusion, test metrics, quality lines."""
    full = report["fusion"]["full"]
    lines = [
        f"fusion: {full['crm']:.3f} crm + {full['llm']:.3f} llm {full['bias']:+.3f}",
        f"{'test window':<24}{'rows':>9}  AUC [95% interval]         per user  log loss  accuracy",
    ]
    for rows in ("all", "sample"):
        table = find_table(report, "test", rows)
        for model, values in table.get("models", {}).items():
            auc, *others = (values[name] for name in ("auc", "gauc", "log_loss", "accuracy"))
            interval = auc and f"{auc['value']:.4f} [{auc['low']:.4f}, {auc['high']:.4f}]"
            numbers = "".join(
                f"{each['value']:>10.4f}" if each else f"{'-':>10}" for each in others
            )
            head = f"{rows + '/' + model:<24}{table['num_rows']:>9}"
            lines.append(f"{head}  {interval or '-':<25}{numbers}")
    for line in report["quality"]:
        word = "met   " if line["passed"] else "MISSED"
        lines.append(f"{word}  {line['name']}: {line['measured']} (asked: {line['target']})")
    return lines


def _crm_auc(report: Mapping[str, Any], window: str) -> tuple[float | None, str]:
    for group in report["crm_seeds"]:
        if group["window"] == window:
            return group["mean"]["auc"], f"mean of {len(group['runs'])} seeds"
    if window != "crm":
        return None, "no run"
    return _value(find_table(report, "test", "all"), "models", "crm_row", "auc"), "one seed"


def _value(table: Mapping[str, Any], *path: str) -> float | None:
    node: Any = table
    for key in path:
        node = (node or {}).get(key)
    return None if node is None else float(node["value"])


def _recall_line(recall: Mapping[str, float]) -> QualityLine:
    """Retrieval must find more of the test positives than popularity does."""
    return QualityLine(
        "retrieval Recall@200 on test", f"above popularity's {recall['popularity']:.4f}",
        f"{recall['crm']:.4f}", recall["crm"] > recall["popularity"],
    )


def _at_least(name: str, value: float | None, target: float) -> QualityLine:
    measured = "not measured" if value is None else f"{value:.4f}"
    passed = value is not None and value >= target
    return QualityLine(name, f"at least {target:g}", measured, passed)


def _interval_line(table: Mapping[str, Any], pair: str, name: str, end: str) -> QualityLine:
    interval = (table.get("differences") or {}).get(pair, {}).get("auc")
    target = "interval above 0" if end == "low" else "interval not wholly below 0"
    if interval is None:
        return QualityLine(f"{name}, test AUC", target, "not measured", False)
    passed = interval[end] > 0 if end == "low" else interval[end] >= 0
    measured = f"{interval['value']:+.4f} [{interval['low']:+.4f}, {interval['high']:+.4f}]"
    return QualityLine(f"{name}, test AUC", target, measured, passed)


def _shuffle_line(shuffle: Mapping[str, float] | None) -> QualityLine:
    name, target = "a derangement of users' gates changes the LLM's scores", "most rows"
    if not shuffle:
        return QualityLine(name, target, "not measured", False)
    measured = (
        f"{shuffle['changed_share']:.1%} of rows by over 0.01, "
        f"mean |change| {shuffle['mean_absolute_change']:.4f} in logit"
    )
    return QualityLine(name, target, measured, shuffle["changed_share"] > 0.5)
