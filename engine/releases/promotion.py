"""Whether a challenger replaces the live release: reports of the exams of both -> a decision.

Differences are challenger - live on the same rows, with 95% intervals over users. Two questions are
asked, and they differ in who has to prove what:

    all rows    The challenger must prove that it is hardly worse: the bad end of the interval lies
                within the margin. One that is worse by the margin passes once in 40 times, as an
                interval leaves 2.5% beyond either end. An equal one passes each such question with
                probability Phi(margin / s - 1.96), s being the standard error of the difference:
                9 of 10 at s = margin / 3.2, 1 of 2 at margin / 2. A panel that is too small for
                its margin holds whatever was learned; more judged rows or a wider margin cure it.
    a slice     The challenger is held only where it is worse for certain: the good end of the
                interval lies beyond the margin. Few rows can prove no more. So a small loss of a
                small slice passes; and of many slices one may hold an equal challenger by chance,
                each once in 40 times without a margin, and seldom with one.
    the old panel
                The first rows that ever judged, an exam of its own: as a slice. A release that
                forgets is worse there, and one that learned from wrong labels, which a wrong day
                itself cannot show.

Margins are chosen by the differences between releases that differ in their seed alone. Intervals
over few users are too short: with fewer than `min_users` all rows hold, and a slice is left out.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from engine.config import PromotionConfig
from engine.metrics.estimates import Interval

JUDGED = {"sample": "fused", "all": "crm_calibrated"}
"""By the rows of the report, the answer that users get: with the language model, and without."""
ALL, OLD_PANEL = "all", "the old panel"
"""The slice of all rows; all rows of the old panel's exam."""
LONG_HISTORIES = ("history 20 to 99", "history 100 to 499", "history 500 and over")
DIVISIONS = (
    ("new users", "old users"), ("cold items", "warm items"), ("history under 20", *LONG_HISTORIES),
)
"""Slices that hold every row once."""
DAYS = ("the newest day", "the days before it")
"""Slices that hold every row once, where the report knows of a newest day."""
ACTIVITIES = ("active users", "inactive users")
"""Slices that hold every row of a user with a history once."""
ROUNDING = 1e-6
"""Gate weights are float32: their sums leave 0 and 1 by less."""
Table = Mapping[str, Any]
Tables = Mapping[tuple[str, str], Table]


class Verdict(StrEnum):
    """What becomes of a challenger."""

    PROMOTE = "promote"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a challenger, and why."""

    verdict: Verdict
    reasons: tuple[str, ...]
    """Sentences: everything that holds it, or the main figures of a promotion."""


@dataclass(frozen=True, slots=True)
class _Finding:
    """One thing that was looked at."""

    is_good: bool
    reason: str


@dataclass(frozen=True, slots=True)
class _Bound:
    """What an interval must keep to."""

    metric: str
    end: str
    """Field of Interval: "low" or "high"."""
    limit: float
    is_upper: bool
    """Whether the end may be at most the limit, else at least."""

    def holds(self, interval: Interval) -> bool:
        """Tell whether an interval keeps to it."""
        end = getattr(interval, self.end)
        return bool(end <= self.limit if self.is_upper else end >= self.limit)

    def __str__(self) -> str:
        side = "at most" if self.is_upper else "at least"
        end = "upper" if self.end == "high" else "lower"
        return f"its {end} end must be {side} {self.limit:+.4f}"


def decide(
    report: Mapping[str, Any], promotion: PromotionConfig, old: Mapping[str, Any] | None = None
) -> Decision:
    """Decide on the report of stages/exam_report of two releases, the challenger first; old: that
    of the old panel, if there is one.

    What is missing or not a number never passes. A figure that gets worse never turns a hold into a
    promotion.
    """
    fault = _fault_of(report) or (None if old is None else _fault_of_old(old, report))
    findings = [fault] if fault is not None else [
        *_judge_rows(report, promotion), *_judge_slices(report, promotion),
        *_judge_memory(old, promotion),
        _judge_calibration(report, promotion), *_judge_gates(report, promotion),
        *_judge_costs(report, promotion),
    ]
    held = tuple(each.reason for each in findings if not each.is_good)
    if held:
        return Decision(Verdict.HOLD, held)
    return Decision(Verdict.PROMOTE, tuple(each.reason for each in findings))


def _fault_of(report: Mapping[str, Any]) -> _Finding | None:
    """Return why a report compares no challenger with a live release; None if it does."""
    releases, difference = report.get("releases") or [], report.get("difference")
    names = [each.get("release_id") for each in releases]
    if len(names) != 2 or difference is None:
        return _Finding(False, f"The report does not compare two releases, but has {names}.")
    compared = [difference.get(place) for place in ("first", "second")]
    if compared != names:
        return _Finding(False, f"The difference is of {compared}, the report of {names}.")
    return None


def _fault_of_old(old: Mapping[str, Any], report: Mapping[str, Any]) -> _Finding | None:
    """Return why a report on the old panel is not of the same two releases; None if it is."""
    fault = _fault_of(old)
    if fault is not None:
        return _Finding(False, f"The old panel: {fault.reason}")
    names = [[each["release_id"] for each in part["releases"]] for part in (old, report)]
    if names[0] != names[1]:
        return _Finding(False, f"The old panel is of {names[0]}, the report of {names[1]}.")
    return None


# ----- intervals


def _judge_rows(report: Mapping[str, Any], promotion: PromotionConfig) -> Iterator[_Finding]:
    """Ask for proof that the challenger is no worse over all rows."""
    bounds = (
        _Bound("log_loss", "high", promotion.loss_margin, is_upper=True),
        _Bound("auc", "low", -promotion.auc_margin, is_upper=False),
    )
    tables = _tables_of(report["difference"])
    for rows, model in JUDGED.items():
        table = tables.get((rows, ALL), {})
        for bound in bounds:
            yield _judge(table, rows, ALL, model, bound)
        num_users = _count(table, "num_users")
        if not num_users >= promotion.min_users:
            yield _Finding(False, (
                f"Rows {rows!r} are of {num_users:g} users; an interval over users needs at least "
                f"{promotion.min_users}."
            ))


def _judge_slices(report: Mapping[str, Any], promotion: PromotionConfig) -> Iterator[_Finding]:
    """Look for slices that the challenger is worse on for certain."""
    bound, tables = _slice_bound(promotion), _tables_of(report["difference"])
    judged, small = [], []
    for rows, model in JUDGED.items():
        yield from _missing_rows(report, rows, tables)
        for name in _slices_of(report, rows):
            table = tables.get((rows, name), {})
            if _is_small(table, promotion):
                small.append(name)
                continue
            judged.append(name)
            finding = _judge(table, rows, name, model, bound)
            if not finding.is_good:
                yield finding
    yield _Finding(True, (
        f"No slice is worse for certain: {len(judged)} were judged, {len(small)} have fewer than "
        f"{promotion.min_slice_rows} rows or {promotion.min_users} users."
    ))


def _judge_memory(
    old: Mapping[str, Any] | None, promotion: PromotionConfig
) -> Iterator[_Finding]:
    """Look for what the challenger has forgotten."""
    if old is None:
        yield _Finding(True, "The old panel is not asked: it is not past yet, or has no row.")
        return
    tables = _tables_of(old["difference"])
    for rows, model in JUDGED.items():
        table = tables.get((rows, ALL), {})
        if _is_small(table, promotion):
            yield _Finding(True, (
                f"The old panel's {_count(table, 'num_rows'):g} rows of {rows!r} are not judged: "
                f"fewer than {promotion.min_slice_rows}, or than {promotion.min_users} users."
            ))
        else:
            yield _judge(table, rows, OLD_PANEL, model, _slice_bound(promotion))


def _slice_bound(promotion: PromotionConfig) -> _Bound:
    return _Bound("log_loss", "low", promotion.slice_loss_margin, is_upper=True)


def _is_small(table: Table, promotion: PromotionConfig) -> bool:
    """Tell whether a slice has too few rows or users to hold anything; not so if nobody knows."""
    return (
        _count(table, "num_rows") < promotion.min_slice_rows
        or _count(table, "num_users") < promotion.min_users
    )


def _judge(table: Table, rows: str, name: str, model: str, bound: _Bound) -> _Finding:
    where = (
        f"{bound.metric} of {model} on slice {name!r} ({_count(table, 'num_rows'):g} rows of "
        f"{rows!r})"
    )
    interval = _interval(table, model, bound.metric)
    if interval is None:
        return _Finding(False, f"{where} has no interval; {bound}.")
    change = f"{interval.value:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
    return _Finding(bound.holds(interval), f"{where} changed by {change}; {bound}.")


def _missing_rows(
    report: Mapping[str, Any], rows: str, tables: Tables
) -> Iterator[_Finding]:
    """Look for rows that are in no slice of a division: one that has rows is missing."""
    sizes = {name: _count(table, "num_rows") for (of, name), table in tables.items() if of == rows}
    with_history = sum(sizes.get(name, 0.0) for name in LONG_HISTORIES)     # and some of the rest
    has_days = _field(report.get("exam"), "newest_s") is not None
    divisions = (*DIVISIONS, DAYS) if has_days else DIVISIONS
    wholes = {**dict.fromkeys(divisions, sizes.get(ALL, math.nan)), ACTIVITIES: with_history}
    for names, whole in wholes.items():
        found = sum(sizes.get(name, 0.0) for name in names)
        if not found >= whole:
            yield _Finding(False, (
                f"Slices {', '.join(names)} have {found:g} of {whole:g} rows of {rows!r}: one is "
                "missing."
            ))


def _slices_of(report: Mapping[str, Any], rows: str) -> list[str]:
    """Return the slices that any part of the report has, each once."""
    parts = [*report["releases"], report["difference"]]
    names = [name for part in parts for of, name in _tables_of(part) if of == rows]
    return [name for name in dict.fromkeys(names) if name != ALL]


# ----- the challenger alone


def _judge_calibration(report: Mapping[str, Any], promotion: PromotionConfig) -> _Finding:
    rows, model = "sample", JUDGED["sample"]
    table = _tables_of(report["releases"][0]).get((rows, ALL), {})
    interval, limit = _interval(table, model, "ece"), promotion.max_calibration_error
    value = math.nan if interval is None else interval.value
    return _Finding(value <= limit, (
        f"Expected calibration error of {model} on slice {ALL!r} "
        f"({_count(table, 'num_rows'):g} rows of {rows!r}) is {value:.4f}; it must be at most "
        f"{limit:.4f}."
    ))


def _judge_gates(report: Mapping[str, Any], promotion: PromotionConfig) -> Iterator[_Finding]:
    gates = report["releases"][0].get("gates")
    share, limit = _number(_field(gates, "entropy_share")), promotion.min_entropy_share
    yield _Finding(share >= limit - ROUNDING, (
        f"The gates' entropy is {share:.4f} of that of uniform ones; it must be at least "
        f"{limit:.4f}."
    ))
    loads = _field(gates, "load")
    load = _largest(loads if isinstance(loads, list) else [])
    yield _Finding(load <= promotion.max_adapter_load + ROUNDING, (
        f"The adapter that is used most has {load:.4f} of the gates' weight; it must be at most "
        f"{promotion.max_adapter_load:.4f}."
    ))


# ----- what it costs


def _judge_costs(report: Mapping[str, Any], promotion: PromotionConfig) -> Iterator[_Finding]:
    bounds = {
        "size_bytes": ("The size of the release", promotion.max_size_ratio),
        "cpu_s": ("The CPU time of its answers", promotion.max_cpu_ratio),
    }
    for name, (what, limit) in bounds.items():
        new, live = (_number(_field(each.get("cost"), name)) for each in report["releases"])
        ratio = new / live if live > 0 else math.nan
        yield _Finding(ratio <= limit, (
            f"{what} is {ratio:.2f} of the live release's; it must be at most {limit:.2f}."
        ))


# ----- figures


def _tables_of(part: Mapping[str, Any]) -> Tables:
    """Return the tables of a release, or of the difference, by rows and slice."""
    return {(each["rows"], each["slice"]): each for each in part.get("tables") or []}


def _interval(table: Table, model: str, metric: str) -> Interval | None:
    """Return the interval of a figure; None unless all of it is there, finite and in order."""
    found = _field(_field(_field(table, "models"), model), metric)
    value, low, high = (_number(_field(found, name)) for name in ("value", "low", "high"))
    if math.isnan(value) or not low <= high:
        return None
    return Interval(value, low, high)


def _field(value: Any, name: str) -> Any:
    """Return a field of a JSON object; None where there is no object, or no such field."""
    return value.get(name) if isinstance(value, Mapping) else None


def _count(table: Table, name: str) -> float:
    """Return a count; NaN if there is none."""
    return _number(table.get(name))


def _largest(values: Sequence[Any]) -> float:
    """Return the largest number; NaN if there is none, or if one is none."""
    numbers = [_number(each) for each in values]
    return math.nan if not numbers or any(map(math.isnan, numbers)) else max(numbers)


def _number(value: Any) -> float:
    """Return a finite number; NaN for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else math.nan
