"""The page of all nights, from what the ledger keeps of each."""

from typing import Any

from engine.stages.nights_page import day_of, difference_of, render
from engine.state.nights import Entry, EntryKind


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.02}


def tables(offset: float, names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {
            "rows": rows, "slice": name, "num_rows": 900, "num_users": 45,
            "models": {model: {"auc": interval(offset), "log_loss": interval(-offset)}},
        }
        for rows, model in (("all", "crm_calibrated"), ("sample", "fused")) for name in names
    ]


REPORT = {
    "releases": [{"tables": tables(0.75, ("all", "the newest day"))},
                 {"tables": tables(0.7125, ("all", "the newest day"))}],
    "difference": {"tables": tables(0.0375, ("all", "the newest day"))},
}


def entry(number: int, kind: EntryKind, **detail: Any) -> Entry:
    return Entry(
        kind, "parent", f"night-{number}", 0, 86_400, reasons=("for <this> reason",),
        detail=detail, night_id=10 + number, opened_id=number, at_s=90_000,
    )


def test_the_ledger_keeps_the_live_releases_day_and_what_the_night_changed() -> None:
    day, difference = day_of(REPORT), difference_of(REPORT)
    assert day["fused"] == {
        "num_rows": 900, "num_users": 45, "auc": interval(0.7125), "log_loss": interval(-0.7125),
    }
    assert difference["crm_calibrated"]["auc"] == interval(0.0375)
    nobody = {**REPORT, "releases": [{}, {"tables": tables(0.7, ("all",))}]}
    assert day_of(nobody) == {}


def test_a_page_shows_the_old_panel_where_there_was_one() -> None:
    judged = {"difference": difference_of(REPORT), "day": {}, "report": "/run/new"}
    with_old = {**judged, "old": difference_of(REPORT), "old_report": "/run/old"}
    page, without = (render([entry(1, EntryKind.PROMOTED, **each)]) for each in (with_old, judged))
    assert page.count("+0.0375") == 2 * without.count("+0.0375") > 0
    assert "/run/old/index.html" in page
    assert "old panel" not in without


def test_a_page_shows_each_night_with_its_day_and_its_reasons() -> None:
    judged = {"difference": difference_of(REPORT), "day": day_of(REPORT), "report": "/run/report"}
    page = render([
        entry(1, EntryKind.PROMOTED, **judged),
        entry(2, EntryKind.HELD, **{**judged, "day": {}}),
        entry(3, EntryKind.FAILED),
    ])
    places = [page.index(f'id="night-{number}"') for number in (3, 2, 1)]
    assert places == sorted(places)
    failed, held, promoted = page[places[0] : places[1]], page[places[1] : places[2]], page[
        places[2] :
    ]
    assert page.count("data:image/svg+xml") == 1
    assert all("for &lt;this&gt; reason" in part for part in (failed, held, promoted))
    assert "as the live release foresaw it" in promoted
    assert "0.712" in promoted
    assert "+0.037" in promoted
    assert "as the live release foresaw it" not in held
    assert "+0.037" in held
    assert "Challenger minus live" not in failed
