"""What releases answered and what followed: state database -> metrics -> printed lines."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from engine.config import EvaluationConfig, RunConfig
from engine.errors import ConfigError, DataError
from engine.metrics.answers import LISTS, OVERLAP, AnswerSums, compare, sum_answers
from engine.state.database import open_existing
from engine.state.outcomes import AnswerCount, AnswerPeriod, count_answers, read_requests
from engine.types import AnswerMode
from jobs.intervals import format_interval

BY_ANSWER = {"liked": "liked per answer", "disliked": "disliked per answer",
             "hit": "list with a liked item"}
"""Metric -> how it is printed."""


def report_answers(
    database_url: str, release_ids: Sequence[str], period: AnswerPeriod, *, now_s: int
) -> dict[str, Any]:
    """Return the JSON form of what was measured.

    Raises ConfigError for an empty period, for the same release twice and where no service has run,
    DataError if a release has no answer in the period that can be measured.
    """
    if period.start_s is not None and period.end_s <= period.start_s:
        raise ConfigError(
            f"--end {_moment(period.end_s)} is not after --start {_moment(period.start_s)} "
            "(without --end the window ends --horizon-hours ago)"
        )
    if len(set(release_ids)) < len(release_ids):
        raise ConfigError(f"--against: {release_ids[0]!r} is --release itself")
    engine = open_existing(database_url)
    try:
        counts = count_answers(engine, period)
        _check_counts(release_ids, counts)
        sums = sum_answers(read_requests(engine, release_ids, period), release_ids)
    finally:
        engine.dispose()
    _check_sums(sums, counts)
    found = compare(sums, num_draws=EvaluationConfig().bootstrap_draws, seed=RunConfig().seed)
    for release in found["releases"]:
        release["num_guests"] = counts[release["release_id"]].num_guests
    return {
        "start_s": period.start_s, "end_s": period.end_s, "horizon_s": period.horizon_s,
        "is_complete": period.end_s + period.horizon_s <= now_s, **found,
    }


def _check_counts(release_ids: Sequence[str], counts: Mapping[str, AnswerCount]) -> None:
    for release_id in release_ids:
        if release_id not in counts:
            known = ", ".join(f"{name!r} ({each.num_answers:,})" for name, each in counts.items())
            raise DataError(
                f"no answer of release {release_id!r} is kept of this window; "
                f"those who answered: {known or 'nobody'}"
            )


def _check_sums(sums: AnswerSums, counts: Mapping[str, AnswerCount]) -> None:
    for number, release_id in enumerate(sums.release_ids):
        if not sums.total(number, "answers"):
            raise DataError(
                f"release {release_id!r} has no answer to measure: of "
                f"{counts[release_id].num_answers:,}, {counts[release_id].num_guests:,} were "
                f"guests' and {sums.orphans[number]:,} shadows whose given answer is not kept"
            )


def answer_lines(report: Mapping[str, Any]) -> list[str]:
    """Return what the job prints."""
    start_s = report["start_s"]
    start = "the oldest" if start_s is None else _moment(start_s)
    lines = [f"answers from {start} until {_moment(report['end_s'])}, and what followed within "
             f"{report['horizon_s'] / 3600:g} h: {report['num_users']:,} users"]
    if not report["is_complete"]:
        lines.append("  the newest of these answers can still be followed by events")
    for release in report["releases"]:
        lines.append(f"release {release['release_id']}")
        lines += _release_lines(release)
    difference, overlap = report["difference"], report["overlap"]
    if difference:
        number = difference["num_requests"]
        which = "all answers" if number is None else f"the {number:,} requests that both answered"
        lines.append(f"{difference['first']} minus {difference['second']}, {which}, the same draws "
                     "of users")
        lines += _metric_lines(difference["metrics"], "+")
    if overlap:
        lines.append(f"share of common items among the first ten "
                     f"{format_interval(overlap[OVERLAP])}, requests that both answered "
                     f"{overlap['num_requests']:,}")
    return lines


def _release_lines(release: Mapping[str, Any]) -> list[str]:
    lines = [f"  answers {release['num_answers']:,} (shadows {release['num_shadows']:,}), users "
             f"{release['num_users']:,}, answers followed by a like {release['num_followed']:,}"]
    if release["num_guests"] or release["num_orphans"]:
        lines.append(f"  left out: answers to guests {release['num_guests']:,}, shadows whose "
                     f"given answer is not kept {release['num_orphans']:,}")
    return lines + _metric_lines(release["metrics"])


def _metric_lines(metrics: Mapping[str, Any], sign: str = "") -> list[str]:
    groups = {
        "all answers": BY_ANSWER, "followed by a like": {name: name for name in LISTS},
        "share of mode": {mode.value: mode.value for mode in AnswerMode},
    }
    return [
        f"    {title:<20} " + "  ".join(
            f"{shown} {format_interval(metrics[name], sign)}" for name, shown in names.items()
        ) for title, names in groups.items()
    ]


def _moment(time_s: int) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
