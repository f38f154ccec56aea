"""Measure a release, or two against each other: on histories, or on what it answered.

python -m jobs.evaluate --release live --histories runs/ml-100k/histories-0123456789ab
    [--against ID] [--start 1998-04-01] [--end 1998-05-01] [--json OUT] [--out runs/evaluation]

examines on a window of time that the releases never learned from, both on the same rows. It prints
AUC, per-user AUC, log loss, ranking metrics and, with --against, the paired differences, each with
its 95% interval over users; the same with every slice is in the JSON and on the page.

python -m jobs.evaluate --answers --release live --against ID
    [--start 2026-11-01] [--end 2026-11-15] [--horizon-hours 24] [--json OUT]

reads from the state database what the releases answered to users and which events followed. It
prints likes by answer, metrics of the lists against what was liked next and, with --against, the
differences and the overlap of lists, with the same intervals. It needs neither models nor Ray.

Registry, database, base model and ranking are those of the Serve config, so lists are the
endpoint's. Relative paths start from LIFELORA_HOME, if that is set.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from engine import storage
from engine.config import at_home
from engine.errors import ConfigError
from engine.metrics.ctr import SHOWN
from engine.releases.registry import Registry
from jobs.exit_code import exit_code
from jobs.intervals import format_interval
from jobs.recommend import read_serve_config

HISTORIES_ALONE = {
    "llm_rows": "--llm-rows", "exclude_seen": "--include-seen and --exclude-seen",
    "actors": "--actors", "out": "--out",
}
"""Options that say nothing about --answers."""
ANSWERS_ALONE = {"horizon_hours": "--horizon-hours"}
"""Options that say nothing about --histories."""
MAX_HORIZON_HOURS = 24 * 366


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate; return the exit code."""
    return exit_code(run, _parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Examine one release, or compare two.")
    evidence = parser.add_mutually_exclusive_group(required=True)
    evidence.add_argument("--histories", help="folder or URI of histories that no release has seen")
    evidence.add_argument("--answers", action="store_true",
                          help="what the endpoint answered, and the events that followed")
    parser.add_argument("--release", default="live", help="release id, or `live`")
    parser.add_argument("--against", metavar="ID",
                        help="another release, or `live`: print --release minus this one")
    parser.add_argument("--start", help="first day or moment of the window (UTC); by default the "
                        "end of what the releases learned from, or the oldest answer")
    parser.add_argument("--end", help="the window ends before this day or moment (UTC); by default "
                        "with the histories, or --horizon-hours ago")
    parser.add_argument("--horizon-hours", type=float, help="how long after an answer an event may "
                        "follow it (default 24)")
    parser.add_argument("--serve-config", default="serve_configs/local.yaml",
                        help="config of the Serve application: registry, database, base model, "
                        "ranking")
    parser.add_argument("--llm-rows", type=int,
                        help="most rows of whole users that the language model reads; by default "
                        "evaluation.test_rows of the release")
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument("--include-seen", dest="exclude_seen", action="store_false", default=None,
                      help="lists may hold items of the history; so by default where feedback is "
                      "implicit, as people buy again")
    seen.add_argument("--exclude-seen", dest="exclude_seen", action="store_true",
                      help="they may not, as the endpoint's by default; so where there are ratings")
    parser.add_argument("--actors", type=int, help="processes for each release (default 1)")
    parser.add_argument("--out", help="folder or URI to fill (default runs/evaluation)")
    parser.add_argument("--json", help="file or URI for what is printed, and all else")
    return parser


def run(options: argparse.Namespace) -> None:
    """Measure on the evidence that was named; raises ConfigError for what the other alone reads."""
    evidence = "answers" if options.answers else "histories"
    for name, shown in (HISTORIES_ALONE if options.answers else ANSWERS_ALONE).items():
        if getattr(options, name) is not None:
            raise ConfigError(f"{shown}: not with --{evidence}")
    if options.answers:
        compare_answers(options)
    else:
        examine(options)


def compare_answers(options: argparse.Namespace) -> None:
    """Hold the events against the answers that they followed, print and write what came out."""
    from engine.state.outcomes import AnswerPeriod  # --help needs no SQLAlchemy
    from jobs.answer_report import answer_lines, report_answers

    serving, root = read_serve_config(options.serve_config)
    start_s, end_s = read_moment(options.start, "--start"), read_moment(options.end, "--end")
    horizon_s, now_s = read_horizon(options.horizon_hours), int(time.time())
    period = AnswerPeriod(start_s, now_s - horizon_s if end_s is None else end_s, horizon_s)
    ids = release_ids(options, Registry(root))
    found = report_answers(serving.database_url, ids, period, now_s=now_s)
    for line in answer_lines(found):
        print(line)
    if options.json:
        storage.write_json(at_home(options.json), found)


def examine(options: argparse.Namespace) -> None:
    """Set the exam, let the releases sit it, print and write what came out."""
    serving, root = read_serve_config(options.serve_config)
    start_s, end_s = read_moment(options.start, "--start"), read_moment(options.end, "--end")
    for name in ("llm_rows", "actors"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: {value} is less than 1")

    from engine.artifacts import open_artifact  # --help needs neither torch nor Ray
    from engine.recommender.loading import check_release
    from engine.stages.exam import Period, read_examined, set_exam, unseen_period
    from engine.stages.judgement import hold_exam
    from engine.stages.release_scores import Sitting
    from jobs.start import configure_logging, start_ray

    registry, out = Registry(root), at_home(options.out or "runs/evaluation")
    ids = release_ids(options, registry)
    for release_id in ids:
        check_release(registry, release_id, model_cache=serving.model_cache)
    histories = open_artifact(at_home(options.histories), "histories")
    releases = [read_examined(registry, release_id) for release_id in ids]
    period = unseen_period(histories, releases)
    period = Period(
        period.start_s if start_s is None else start_s, period.end_s if end_s is None else end_s
    )
    config = releases[0].config
    exclude_seen = options.exclude_seen
    if exclude_seen is None:
        exclude_seen = config.source.label.kind != "implicit"
    configure_logging()
    start_ray()
    exam = set_exam(out, histories, releases, period,
                    llm_rows=options.llm_rows or config.evaluation.test_rows)
    report = hold_exam(out, config, exam, histories, [
        Sitting(registry.root, release_id, serving, exclude_seen, options.actors or 1)
        for release_id in ids
    ])
    found = storage.read_json(report.path("report.json"))
    for line in summary_lines(found):
        print(line)
    if options.json:
        storage.write_json(at_home(options.json), found)
    print(f"report: {report.path('index.html')}")


def release_ids(options: argparse.Namespace, registry: Registry) -> list[str]:
    """Return the ids of --release and, if it is given, of --against."""
    return [registry.live().release_id if name == "live" else name
            for name in (options.release, options.against) if name is not None]


def read_horizon(hours: float | None) -> int:
    """Return --horizon-hours in seconds."""
    hours = 24.0 if hours is None else hours
    if not 0 < hours <= MAX_HORIZON_HOURS:
        raise ConfigError(f"--horizon-hours: {hours:g} is not above 0 and at most "
                          f"{MAX_HORIZON_HOURS}")
    return max(1, round(3600 * hours))


def read_moment(text: str | None, option: str) -> int | None:
    """Return seconds since 1970 of an ISO date or moment, UTC unless it says otherwise."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option}: {text!r} is no date like 1998-04-01 or 1998-04-01T12:00") \
            from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """Return what the job prints."""
    lines = []
    for release in report["releases"]:
        lines.append(f"release {release['release_id']}")
        for table in release["tables"]:
            if table["slice"] == "all":
                lines += _model_lines(table)
        if release["unread_slates"]:
            lines.append(f"  no prompt fits in {release['unread_slates']:,} slates of the sample")
        for ranking in (each for each in release["rankings"] if each["slice"] == "all"):
            lines += _list_lines(ranking)
    if report["difference"]:
        lines += _difference_lines(report["difference"])
    return lines


def _model_lines(table: Mapping[str, Any]) -> list[str]:
    lines = [f"  {table['rows']}: {table['num_rows']:,} rows, {table['num_users']:,} users"]
    for model, values in table["models"].items():
        shown = "  ".join(f"{name} {format_interval(values[name])}"
                          for name in (*SHOWN, "ece"))
        lines.append(f"    {model:<15} {shown}")
    return lines


def _list_lines(ranking: Mapping[str, Any]) -> list[str]:
    lines = [f"  lists, {ranking['kind']} liked items: {ranking['num_queries']:,} requests, "
             f"{ranking['num_users']:,} users"]
    for name, values in ranking["lists"].items():
        shown = "  ".join(f"{metric} {format_interval(values[metric])}" for metric in
                          ("ndcg@10", "recall@10", "recall@50", "recall@200", "mrr"))
        rest = "  ".join(f"{metric} {values[metric]['value']:.4f}" for metric in
                         ("novelty@10", "coverage@10") if values[metric])
        lines.append(f"    {name:<15} {shown}  {rest}")
    return lines


def _difference_lines(difference: Mapping[str, Any]) -> list[str]:
    lines = [f"{difference['first']} minus {difference['second']}, paired"]
    for table in difference["tables"]:
        for model in ("llm", "fused") if table["rows"] == "sample" else ("crm_calibrated",):
            values = table["models"][model]
            shown = "  ".join(f"{name} {format_interval(values[name], '+')}"
                              for name in SHOWN)
            lines.append(f"    {table['rows'] + ', ' + table['slice']:<34} {model:<15} {shown}")
    for each in difference["rankings"]:
        if each["list"] == "full" and each["slice"] == "all":
            shown = "  ".join(f"{name} {format_interval(each['metrics'][name], '+')}"
                              for name in ("ndcg@10", "recall@10", "mrr"))
            lines.append(f"    {'lists, ' + each['kind']:<34} {'full':<15} {shown}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
