"""A challenger that is worse, or of which too little is known, never goes live."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import PromotionConfig
from engine.releases.promotion import ACTIVITIES, DAYS, DIVISIONS, JUDGED, Verdict, decide
from engine.stages.exam_report import (
    EARLIER_DAYS,
    NEWEST_DAY,
    Settings,
    examine,
    slices_of,
)
from tests.exam_answers import EXAM_SCORES, make_answers, make_exam

SETTINGS = Settings(num_draws=60, seed=1, max_rows=10_000)
BOUNDS = PromotionConfig(min_slice_rows=100, min_users=5, max_calibration_error=0.2)
Report = dict[str, Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Report]:
    """Return what makes the report of two releases: a challenger against a fair one."""
    root = tmp_path_factory.mktemp("promotion")
    exam, live = make_exam(root), make_answers(root, "live", noise=0.3)
    return lambda **change: json.loads(json.dumps(
        examine(exam, [make_answers(root, "new", **{"noise": 0.3, **change}), live], SETTINGS)
    ))


@pytest.fixture(scope="module")
def equal(world: Callable[..., Report]) -> Report:
    """Return the report of two releases that answered the same, without what decides nothing."""
    report = world()
    for part in (*report["releases"], report["difference"]):
        del part["rankings"]
    return report


def held(report: Report, bounds: PromotionConfig = BOUNDS) -> str:
    """Return the reasons why a challenger is held."""
    decision = decide(report, bounds)
    assert decision.verdict is Verdict.HOLD
    return "\n".join(decision.reasons)


def table_in(part: Report, rows: str, name: str) -> Report:
    [found] = [each for each in part["tables"] if (each["rows"], each["slice"]) == (rows, name)]
    return found


def test_a_release_that_answers_the_same_is_promoted_with_its_figures(equal: Report) -> None:
    decision = decide(equal, PromotionConfig(loss_margin=0, auc_margin=0, slice_loss_margin=0,
                                             max_calibration_error=0.2))
    assert decision.verdict == "promote"
    text = "\n".join(decision.reasons)
    for part in (
        "log_loss of fused on slice 'all' (960 rows of 'sample') changed by +0.0000 "
        "[+0.0000, +0.0000]; its upper end must be at most +0.0000.",
        "auc of crm_calibrated on slice 'all' (1440 rows of 'all')", "Expected calibration error",
        "The gates' entropy is 0.", "The adapter that is used most has 0.", "No slice is worse",
        "The size of the release is 1.00 of the live release's",
        "The CPU time of its answers is 1.00 of the live release's",
    ):
        assert part in text


def test_a_better_release_is_promoted_and_a_worse_one_is_held(
    world: Callable[..., Report],
) -> None:
    assert decide(world(noise=0.1), BOUNDS).verdict is Verdict.PROMOTE
    text = held(world(noise=3.0))
    for part in ("log_loss of fused on slice 'all' (960 rows of 'sample') changed by +",
                 "log_loss of crm_calibrated on slice 'all' (1440 rows of 'all')",
                 "auc of fused on slice 'all'", "auc of crm_calibrated on slice 'all'",
                 "; its lower end must be at least -0.0100."):
        assert part in text


def test_a_slice_that_is_worse_for_certain_holds_and_a_small_one_does_not(
    world: Callable[..., Report],
) -> None:
    report = world(cold_noise=2.0)
    wide = BOUNDS.model_copy(update={"loss_margin": 9.0, "auc_margin": 1.0})
    text = held(report, wide)
    assert "log_loss of fused on slice 'cold items' (" in text
    assert "its lower end must be at most +0.0050." in text
    assert "'warm items'" not in text
    assert "'all' (" not in text
    few = wide.model_copy(update={"min_slice_rows": 10_000})
    decision = decide(report, few)
    assert decision.verdict is Verdict.PROMOTE
    assert "0 were judged" in decision.reasons[4]


def test_what_is_forgotten_for_certain_holds_and_a_small_old_panel_does_not(
    world: Callable[..., Report], equal: Report
) -> None:
    forgotten = world(noise=3.0)
    decision = decide(equal, BOUNDS, forgotten)
    assert decision.verdict is Verdict.HOLD
    assert [reason.partition(" on slice 'the old panel' (")[0] for reason in decision.reasons] == [
        "log_loss of fused", "log_loss of crm_calibrated",
    ]
    few = BOUNDS.model_copy(update={"min_slice_rows": 10_000})
    decision = decide(equal, few, forgotten)
    assert decision.verdict is Verdict.PROMOTE
    assert "The old panel's 960 rows of 'sample' are not judged" in "\n".join(decision.reasons)
    remembered = decide(equal, BOUNDS, equal)
    assert remembered.verdict is Verdict.PROMOTE
    assert "\n".join(remembered.reasons).count("'the old panel'") == 2


def test_an_old_panel_that_says_nothing_holds(equal: Report) -> None:
    other = copy.deepcopy(equal)
    other["releases"][0]["release_id"] = other["difference"]["first"] = "another"
    for old in ({}, {**equal, "difference": None}, {**equal, "releases": equal["releases"][::-1]},
                other):
        [reason] = decide(equal, BOUNDS, old).reasons
        assert reason.startswith("The old panel")
    unknown = copy.deepcopy(equal)
    table_in(unknown["difference"], "all", "all")["models"]["crm_calibrated"]["log_loss"] = None
    [reason] = decide(equal, BOUNDS, unknown).reasons
    assert reason.startswith("log_loss of crm_calibrated on slice 'the old panel' (1440 rows")


def test_ranks_alone_do_not_make_an_overconfident_release_good(
    world: Callable[..., Report],
) -> None:
    text = held(world(scale=6.0), BOUNDS.model_copy(update={
        "loss_margin": 9.0, "slice_loss_margin": 9.0, "max_calibration_error": 0.1,
    }))
    assert text.startswith("Expected calibration error of fused on slice 'all' (960 rows")
    assert "must be at most 0.1000" in text


@pytest.mark.parametrize(("change", "reason"), [
    ({"min_entropy_share": 0.9}, "The gates' entropy is 0."),
    ({"max_adapter_load": 0.25}, "The adapter that is used most has 0."),
    ({"max_size_ratio": 0.9}, "The size of the release is 1.00 of the live release's; it must be"),
    ({"max_cpu_ratio": 0.9}, "The CPU time of its answers is 1.00 of the live release's; it must"),
    ({"min_users": 41}, "Rows 'sample' are of 40 users; an interval over users needs"),
])
def test_gates_costs_and_the_number_of_users_are_bounded(
    equal: Report, change: dict[str, Any], reason: str
) -> None:
    [found] = decide(equal, BOUNDS.model_copy(update=change)).reasons
    assert found.startswith(reason)


def test_gates_that_use_one_adapter_alone_pass_bounds_that_allow_it(equal: Report) -> None:
    report = copy.deepcopy(equal)
    report["releases"][0]["gates"] |= {"entropy_share": -1e-9, "load": [1.0 + 1e-8, 0.0]}
    assert decide(report, BOUNDS).verdict is Verdict.PROMOTE


@pytest.mark.parametrize("lost", ["difference", "releases"])
def test_a_report_of_one_release_holds(equal: Report, lost: str) -> None:
    assert "does not compare two releases" in held({**equal, lost: None})
    assert "does not compare two releases" in held({})


def test_a_report_the_other_way_round_holds(equal: Report) -> None:
    assert "The difference is of ['new', 'live']" in held(
        {**equal, "releases": equal["releases"][::-1]}
    )


@pytest.mark.parametrize("rows", JUDGED)
def test_a_slice_that_is_missing_holds(equal: Report, rows: str) -> None:
    for name in (each["slice"] for each in equal["difference"]["tables"] if each["rows"] == rows):
        report = copy.deepcopy(equal)
        difference = report["difference"]
        difference["tables"].remove(table_in(difference, rows, name))
        assert f"slice '{name}' (nan rows of '{rows}') has no interval" in held(report)


def test_a_slice_that_the_whole_report_lacks_holds_where_it_has_rows(equal: Report) -> None:
    for names in (*DIVISIONS, ACTIVITIES):
        for name in names:
            report = copy.deepcopy(equal)
            for part in (*report["releases"], report["difference"]):
                part["tables"].remove(table_in(part, "sample", name))
            text = held(report)
            assert f"Slices {', '.join(names)} have " in text
            assert "rows of 'sample': one is missing." in text


def test_a_day_that_the_whole_report_lacks_holds(equal: Report) -> None:
    report = copy.deepcopy(equal)
    report["exam"]["newest_s"] = 100
    text = held(report)
    assert "Slices the newest day, the days before it have 0 of 960 rows of 'sample'" in text
    for part in (*report["releases"], report["difference"]):
        for rows in JUDGED:
            table = table_in(part, rows, "all")
            part["tables"].append({**table, "slice": "the newest day"})
    assert decide(report, BOUNDS).verdict is Verdict.PROMOTE


def test_divisions_have_the_names_of_the_report() -> None:
    assert (NEWEST_DAY, EARLIER_DAYS) == DAYS
    names = slices_of(EXAM_SCORES.empty_table())
    assert {name for group in (*DIVISIONS, ACTIVITIES) for name in group} <= names.keys()
    assert [name for name in names if name.startswith("history ")] == list(DIVISIONS[2])


# ----- properties

Place = tuple[Any, ...]


def relevant(report: Report) -> Iterator[tuple[Place, int]]:
    """Yield the place of every interval that a decision reads, and the sign of its worse side."""
    for place, table in enumerate(report["difference"]["tables"]):
        model = JUDGED[table["rows"]]
        whole = table["slice"] == "all"
        if whole or table["num_rows"] >= BOUNDS.min_slice_rows:
            yield ("difference", "tables", place, "models", model, "log_loss"), 1
        if whole:
            yield ("difference", "tables", place, "models", model, "auc"), -1
    for place, table in enumerate(report["releases"][0]["tables"]):
        if (table["rows"], table["slice"]) == ("sample", "all"):
            yield ("releases", 0, "tables", place, "models", "fused", "ece"), 1


def at(report: Report, place: Place) -> Any:
    found: Any = report
    for step in place:
        found = found[step]
    return found


def test_a_figure_that_is_missing_or_no_number_holds(equal: Report) -> None:
    places = [place for place, _ in relevant(equal)]
    assert len(places) > 20
    for *where, metric in places:
        for value in (None, math.nan, {}, {"value": 0.0, "low": math.nan, "high": 0.0},
                      {"value": 0.0, "low": 0.0, "high": math.inf}, {"value": 0.0, "low": 0.0},
                      {"value": None, "low": 0.0, "high": 0.0}, {"value": 0, "low": 1, "high": 0}):
            report = copy.deepcopy(equal)
            at(report, tuple(where))[metric] = value
            assert f"{metric} of" in held(report).replace("Expected calibration error", "ece")


@pytest.mark.parametrize("release", [0, 1])
@pytest.mark.parametrize("cost", [
    None, {}, {"size_bytes": 0, "cpu_s": 0.0}, {"size_bytes": None, "cpu_s": math.nan},
])
def test_costs_that_are_not_known_hold(equal: Report, cost: Any, release: int) -> None:
    report = copy.deepcopy(equal)
    report["releases"][release]["cost"] = cost
    unknown = cost != {"size_bytes": 0, "cpu_s": 0.0} or release == 1      # 0 is little
    assert (decide(report, BOUNDS).verdict is Verdict.HOLD) == unknown


@pytest.mark.parametrize("gates", [
    None, {}, {"entropy_share": math.nan, "load": [0.5, 0.5]}, {"entropy_share": 0.5, "load": []},
    {"entropy_share": 0.5, "load": [0.1, math.nan]}, {"entropy_share": 0.5, "load": math.nan},
    {"load": [0.5, 0.5]},
])
def test_gates_that_are_not_known_hold(equal: Report, gates: Any) -> None:
    report = copy.deepcopy(equal)
    report["releases"][0]["gates"] = gates
    assert "nan" in held(report)


@pytest.mark.parametrize("count", ["num_rows", "num_users"])
def test_counts_that_are_not_known_hold(equal: Report, count: str) -> None:
    report = copy.deepcopy(equal)
    table_in(report["difference"], "sample", "all")[count] = None
    held(report)
    report = copy.deepcopy(equal)
    table_in(report["difference"], "all", "cold items")["num_rows"] = math.nan
    held(report)


small = st.floats(0, 0.03)


@given(data=st.data())
def test_a_worse_figure_never_turns_a_hold_into_a_promotion(equal: Report, data: Any) -> None:
    report = copy.deepcopy(equal)
    places = list(relevant(report))
    for place, sign in data.draw(st.lists(st.sampled_from(places), max_size=4)):
        middle, half = sign * data.draw(st.floats(-0.02, 0.03)), data.draw(st.floats(0, 0.02))
        at(report, place).update(value=middle, low=middle - half, high=middle + half)
    before = decide(report, BOUNDS)
    for place, sign in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=4)):
        for end, by in zip(("value", "low", "high"), [data.draw(small)] * 3, strict=True):
            at(report, place)[end] += sign * by
    gates = report["releases"][0]["gates"]
    gates["entropy_share"] -= data.draw(small)
    gates["load"][0] += data.draw(small)
    after = decide(report, BOUNDS)
    if before.verdict is Verdict.HOLD:
        assert after.verdict is Verdict.HOLD
        assert len(after.reasons) >= len(before.reasons)


def test_the_same_report_gives_the_same_decision_whatever_the_order_of_its_tables(
    world: Callable[..., Report],
) -> None:
    report = world(noise=1.5)
    turned = copy.deepcopy(report)
    for part in (*turned["releases"], turned["difference"]):
        part["tables"].reverse()
    assert sorted(decide(turned, BOUNDS).reasons) == sorted(decide(report, BOUNDS).reasons)
