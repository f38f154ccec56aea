"""The ledger -> one page over all nights: what came in, what was learned and decided, and why."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine import storage
from engine.releases.promotion import ALL, JUDGED
from engine.stages import plots
from engine.stages.exam_report import NEWEST_DAY
from engine.stages.page import data_uri, format_moment, render_page
from engine.state.nights import Entry, EntryKind

PAGE = "nights.html"
ENDS = (EntryKind.PROMOTED, EntryKind.HELD, EntryKind.FAILED, EntryKind.ROLLED_BACK)
COUNTS = {
    "events": ("histories", "events"), "duplicates": ("histories", "duplicates"),
    "late events": ("histories", "late_events"), "users with news": ("histories", "users"),
    "new items": ("histories", "new_items"), "rows for the CRM": ("slates", "crm_rows"),
    "of them replayed": ("slates", "replayed_crm_rows"),
    "rows for the bank": ("slates", "bank_rows"), "tokens read": ("bank", "training_tokens"),
}
"""What is told of a night -> kind and fact of the artifact that knows."""


def write_nights(run: str, ledger: Sequence[Entry]) -> str:
    """Write the page of all nights that have ended; return its URI."""
    ended = [entry for entry in ledger if entry.kind in ENDS]
    uri = storage.join(run, PAGE)
    storage.write_bytes(uri, render(ended).encode())
    return uri


def render(ended: Sequence[Entry]) -> str:
    """Return the page, the newest night first."""
    nights = [_night(entry) for entry in ended]
    judged = [night for night in nights if night["difference"]]
    figure = data_uri(plots.nights_figure(judged)) if judged else None
    return render_page("nights.html.jinja", {
        "nights": nights[::-1], "figure": figure, "names": plots.NAMES,
    })


def _night(entry: Entry) -> dict[str, Any]:
    facts = entry.detail.get("facts", {})
    counts = {
        title: facts[kind][name] for title, (kind, name) in COUNTS.items()
        if name in facts.get(kind, {})
    }
    return {
        "number": entry.opened_id or entry.night_id, "kind": entry.kind.value,
        "ended": format_moment(entry.at_s or 0),
        "until": entry.until_s and format_moment(entry.until_s),
        "parent_id": entry.parent_id, "release_id": entry.release_id,
        "reasons": entry.reasons, "counts": counts,
        "moved": facts.get("bank", {}).get("moved", {}),
        **{name: entry.detail.get(name) for name in (
            "report", "old_report", "code", "difference", "day", "old",
        )},
    }


def difference_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the differences of AUC and log loss, challenger - live, by model, for the ledger."""
    return _figures(report["difference"], ALL)


def day_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return AUC and log loss of the live release on the day that the night learned, by model: of
    users that judge, before anything was learned of it. Empty where nobody of them was there.
    """
    return _figures(report["releases"][1], NEWEST_DAY)


def _figures(part: Mapping[str, Any], name: str) -> dict[str, Any]:
    tables = {each["rows"]: each for each in part["tables"] if each["slice"] == name}
    return {
        model: {
            **{count: tables[rows][count] for count in ("num_rows", "num_users")},
            **{metric: tables[rows]["models"][model][metric] for metric in ("auc", "log_loss")},
        }
        for rows, model in JUDGED.items() if rows in tables
    }
