"""Stage: every artifact of a run -> one page for people and one file for programs ("report").

    report.json   data, timeline, training curves, learning, evaluation, stages, settings
    index.html    the same with figures; needs no other file, no network and no script
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from engine import storage
from engine.artifacts import Artifact, make
from engine.config import EngineConfig
from engine.errors import ArtifactError
from engine.stages import plots
from engine.stages.adapters import read_learning
from engine.stages.comparison import DIFFERENCES
from engine.stages.page import data_uri, format_moment, render_page
from engine.stages.quality import find_table
from engine.types import Window

REPORT_FILE = "report.json"
PAGE_FILE = "index.html"
TEMPLATE = "report.html.jinja"
CURVE_FILE = "curve.json"
DATA_KINDS = ("interactions", "histories", "slates")
_RESULT_KINDS = ("evaluation", "fusion")


def write_report(run: str, config: EngineConfig, artifacts: Sequence[Artifact]) -> Artifact:
    """Return report.json and index.html of the artifacts, given in the order of the stages.

    One of each kind; what `evaluation.crm_seeds` trains besides is not in the times. Raises
    ArtifactError without an evaluation.
    """
    def write(folder: str) -> dict[str, Any]:
        report = collect(config, artifacts)
        storage.write_json(storage.join(folder, REPORT_FILE), report)
        page = render(report)
        storage.write_bytes(storage.join(folder, PAGE_FILE), page.encode())
        return {"page": PAGE_FILE, "seconds_of_stages": report["seconds"]}

    return make(run, "report", {"config": config.settings()}, artifacts, write)


def collect(config: EngineConfig, artifacts: Sequence[Artifact]) -> dict[str, Any]:
    """Return the content of report.json."""
    of_kind = {artifact.kind: artifact for artifact in artifacts}
    if "evaluation" not in of_kind:
        raise ArtifactError(f"a report needs an evaluation, got {sorted(of_kind)}")
    stages = [
        {"kind": each.kind, "key": each.key, "seconds": each.manifest()["seconds"],
         "facts": dict(each.facts)}
        for each in artifacts
    ]
    return {
        "evaluation": storage.read_json(of_kind["evaluation"].path(REPORT_FILE)),
        "data": {kind: dict(of_kind[kind].facts) for kind in DATA_KINDS if kind in of_kind},
        "timeline": _timeline(of_kind.get("histories")),
        "curves": {
            kind: storage.read_json(each.path(CURVE_FILE))
            for kind, each in of_kind.items() if each.path(CURVE_FILE) in each.files()
        },
        "learning": read_learning(of_kind["bank"].uri) if "bank" in of_kind else [],
        "stages": stages, "seconds": round(sum(each["seconds"] for each in stages), 1),
        "settings": config.settings(),
    }


def _timeline(histories: Artifact | None) -> dict[str, int]:
    if histories is None:
        return {}
    timeline: dict[str, int] = storage.read_json(histories.path("timeline.json"))
    return timeline


def render(report: Mapping[str, Any]) -> str:
    """Return the page of a report.json."""
    return render_page(TEMPLATE, _page(report))


def _page(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the template's values, in an order that does not depend on that of JSON keys."""
    evaluation = report["evaluation"]
    tables = sorted(
        (each for each in evaluation["tables"] if each["window"] == "test"),
        key=lambda each: each["rows"] != "sample",
    )
    stage_facts = [
        {**each, "facts": flatten(each["facts"]) if each["kind"] not in _RESULT_KINDS else {}}
        for each in report["stages"]
    ]
    kinds = list(dict.fromkeys(each["kind"] for each in stage_facts))
    return {
        "evaluation": evaluation, "tables": tables, "names": plots.NAMES,
        "pairs": [(one, other, f"{one} - {other}") for one, other in DIFFERENCES],
        "validation": find_table(evaluation, "validation", "sample"),
        "figures": {name: data_uri(svg) for name, svg in _figures(report).items()},
        "curves": {kind: data_uri(plots.curve_figure(report["curves"][kind]))
                   for kind in kinds if report["curves"].get(kind)},
        "windows": windows_of(report["timeline"], report["data"].get("histories", {})),
        "data": {kind: flatten(_without(report["data"][kind], "quarantined", "windows"))
                 for kind in DATA_KINDS if kind in report["data"]},
        "quarantined": quarantined(report["data"].get("interactions", {})),
        "stages": stage_facts, "seconds": report["seconds"],
        "longest_s": max(1e-9, *(each["seconds"] for each in stage_facts)),
        "settings": report["settings"], "changed": changed_settings(report["settings"]),
        "settings_text": json.dumps(report["settings"], indent=2, sort_keys=True),
    }


def _figures(report: Mapping[str, Any]) -> dict[str, str]:
    evaluation = report["evaluation"]
    panels = [("test, LLM sample", find_table(evaluation, "test", "sample")),
              ("test, all rows", find_table(evaluation, "test", "all"))]
    figures = {
        "auc": plots.auc_figure(panels),
        "reliability": plots.reliability_figure(evaluation["reliability"]),
        "history_lengths": plots.history_length_figure(evaluation["history_lengths"]),
    }
    if report["learning"]:
        figures["learning"] = plots.learning_figure(report["learning"])
    if evaluation["gates"]:
        figures["gates"] = plots.gates_figure(evaluation["gates_heat_map"], evaluation["gates"])
    return figures


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested facts as paths ("test/rows"), lists as text."""
    flat: dict[str, Any] = {}
    for name, each in value.items():
        path = f"{prefix}{name}"
        if isinstance(each, Mapping):
            flat.update(flatten(each, f"{path}/"))
        else:
            flat[path] = json.dumps(each) if isinstance(each, list | tuple) else each
    return flat


def _without(facts: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in names}


def windows_of(timeline: Mapping[str, int], facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each window's name, first and last moment (UTC) and events if they were counted."""
    if not timeline:
        return []
    cuts = [timeline[name] for name in ("start_s", "t0_s", "t1_s", "t2_s", "end_s")]
    uses = ("trains the CRM", "trains the bank", "everything is chosen here", "reported once")
    return [
        {"name": window.name.lower(), "use": use, "start": format_moment(start),
         "end": format_moment(end), "events": facts.get("windows", {}).get(window.name.lower())}
        for window, use, start, end in zip(Window, uses, cuts, cuts[1:], strict=False)
    ]


def quarantined(interactions: Mapping[str, Any]) -> dict[str, int]:
    """Return refused rows by table and reason."""
    refused = flatten(interactions.get("quarantined", {}))
    return {name: int(count) for name, count in sorted(refused.items())}


def changed_settings(settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ from the defaults, as (value, default)."""
    defaults = flatten(EngineConfig().settings())
    return {
        name: (value, defaults.get(name)) for name, value in sorted(flatten(settings).items())
        if value != defaults.get(name)
    }
