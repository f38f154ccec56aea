"""Releases -> their answers to one exam, compared ("exam_report").

A night's challenger and the live release are judged on rows that neither learned. Lists are ranked
without the language model: they would cost as much again, and nothing is decided by them.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from engine.artifacts import Artifact
from engine.config import EngineConfig, RankingConfig, ServingConfig
from engine.data.roles import Roles
from engine.data.splits import DAY_S
from engine.errors import EmptyExamError
from engine.releases.registry import Registry
from engine.stages.exam import Period, read_examined, set_exam
from engine.stages.exam_report import Answers, Settings, report_exam
from engine.stages.release_scores import Sitting, sit_exam


def judge(
    run: str, config: EngineConfig, histories: Artifact, release_ids: Sequence[str], roles: Roles,
    day: Period,
) -> Artifact:
    """Return the report of the first release against the second on the newest rows that judge.

    Those of the day are a slice of it. Raises EmptyExamError if no row judges.
    """
    return compare(
        run, config, histories, release_ids, newest_period(config, roles, day.end_s),
        rows=config.night.judge_rows, roles=roles, newest_s=day.start_s,
    )


def judge_memory(
    run: str, config: EngineConfig, histories: Artifact, release_ids: Sequence[str], roles: Roles,
    end_s: int,
) -> Artifact | None:
    """Return the report on the old panel: the first rows that judged, the same every night. None
    until they are past the newest ones, and where nobody was there to judge.
    """
    period = old_period(config, roles)
    is_past = period.end_s <= newest_period(config, roles, end_s).start_s
    if not (is_past and config.night.old_days):
        return None
    try:
        return compare(
            run, config, histories, release_ids, period, rows=config.night.judge_rows, roles=roles
        )
    except EmptyExamError:
        return None


def newest_period(config: EngineConfig, roles: Roles, end_s: int) -> Period:
    """Return the days before `end_s` that a night is judged by."""
    return Period(max(roles.since_s, end_s - config.night.judge_days * DAY_S), end_s)


def old_period(config: EngineConfig, roles: Roles) -> Period:
    """Return the days of the old panel."""
    return Period(roles.since_s, roles.since_s + config.night.old_days * DAY_S)


def compare(
    run: str, config: EngineConfig, histories: Artifact, release_ids: Sequence[str],
    period: Period, *, rows: int, roles: Roles | None = None, newest_s: int | None = None,
) -> Artifact:
    """Return the report of one or two releases on a period; `rows` (of whole users) are read by
    the language model. With roles, only the rows that judge are asked.
    """
    registry = Registry(config.run.registry)
    examined = [read_examined(registry, each) for each in release_ids]
    exam = set_exam(
        run, histories, examined, period, llm_rows=rows, roles=roles,
        train_end_s=period.start_s, newest_s=newest_s,
    )
    serving = ServingConfig(
        model_cache=config.base_model.cache, device=config.base_model.device,
        threads=config.adapters.threads_per_worker, ranking=RankingConfig(llm_candidates=0),
    )
    exclude_seen = config.source.label.kind != "implicit"
    num_actors = max(1, config.adapters.num_workers // len(set(release_ids)))
    sittings = [
        Sitting(registry.root, each, serving, exclude_seen, num_actors) for each in release_ids
    ]
    return hold_exam(run, config, exam, histories, sittings)


def hold_exam(
    out: str, config: EngineConfig, exam: Artifact, histories: Artifact,
    sittings: Sequence[Sitting],
) -> Artifact:
    """Let one or two releases sit an exam, at once where CPUs or GPUs are free for both. Return the
    report, measured as a configuration says. Where one fails, it is told when both are through.
    """
    distinct = list({each.release_id: each for each in sittings}.values())
    with ThreadPoolExecutor(len(distinct)) as pool:
        scores = list(pool.map(partial(sit_exam, out, exam, histories), distinct))
    found = {
        each.release_id: Answers.read(Registry(each.registry), each.release_id, own)
        for each, own in zip(distinct, scores, strict=True)
    }
    answers = [found[each.release_id] for each in sittings]
    return report_exam(out, exam, answers, Settings(
        config.evaluation.bootstrap_draws, config.run.seed, config.evaluation.max_rows
    ))
