"""report.json of an exam -> its page."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.metrics import ranking
from engine.stages import plots
from engine.stages.comparison import DIFFERENCES, HISTORY_LENGTHS
from engine.stages.page import data_uri, format_moment, render_page

TEMPLATE = "exam.html.jinja"
LIST_NAMES = {
    "full": "full: retrieval, CRM, LLM", "crm": "retrieval, CRM", "popular": "popularity",
    "history": "had most often",
}


def render(report: Mapping[str, Any]) -> str:
    """Return the page."""
    return render_page(TEMPLATE, {
        "exam": report["exam"], "settings": report["settings"],
        "period": [format_moment(report["exam"][name]) for name in ("start_s", "end_s")],
        "releases": [_release(each) for each in report["releases"]],
        "difference": report["difference"], "names": plots.NAMES, "list_names": LIST_NAMES,
        "list_metrics": [*ranking.METRICS, "coverage@10"],
        "pairs": [(one, other, f"{one} - {other}") for one, other in DIFFERENCES],
    })


def _release(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return one release's part with its figures."""
    tables = {(each["rows"], each["slice"]): each for each in part["tables"]}
    panels = [("sample", tables["sample", "all"]), ("all rows", tables["all", "all"])]
    figures = {
        "auc": plots.auc_figure(panels),
        "reliability": plots.reliability_figure(part["reliability"]),
        "lengths": plots.history_length_figure(_buckets(tables)),
    }
    if part["learning"]:
        figures["learning"] = plots.learning_figure(part["learning"])
    if part["gates"]:
        figures["gates"] = plots.gates_figure(part["gates_heat_map"], part["gates"])
    return {
        **part, "wholes": [tables["sample", "all"], tables["all", "all"]],
        "slices": slice_rows(part["tables"]),
        "figures": {name: data_uri(svg) for name, svg in figures.items()},
    }


def _buckets(tables: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"history_length": name, "num_rows": table["num_rows"], "num_users": table["num_users"],
         "auc": {model: values["auc"] for model, values in table["models"].items()}}
        for name in HISTORY_LENGTHS if (table := tables.get(("sample", f"history {name}")))
    ]


def slice_rows(tables: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each slice: counts, AUC by model, fused minus CRM; None where the language
    model did not read.
    """
    return [
        {
            **{name: table[name] for name in ("rows", "slice", "num_rows", "num_users")},
            "auc": {model: table["models"].get(model, {}).get("auc") for model in
                    ("popularity", "crm", "llm", "fused")},
            "gain": table["differences"].get("fused - crm", {}).get("auc"),
        }
        for table in tables
    ]
