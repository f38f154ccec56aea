"""Releases -> their answers to one exam, compared ("exam_report").

A night's challenger and the live release are judged on rows that neither learned. Lists are ranked
without the language model: they would cost as much again, and nothing is decided by them.
"""

from collections.abc import Sequence

from engine.artifacts import Artifact
from engine.config import EngineConfig, RankingConfig, ServingConfig
from engine.data.roles import Roles
from engine.data.splits import DAY_S
from engine.releases.registry import Registry
from engine.stages.exam import Period, read_examined, set_exam
from engine.stages.exam_report import Answers, Settings, report_exam
from engine.stages.release_scores import Sitting, sit_exam


def judge(
    run: str, config: EngineConfig, histories: Artifact, release_ids: Sequence[str], roles: Roles,
    day: Period,
) -> Artifact:
    """Return the report of the first release against the second on the newest rows that judge.

    Those of the day, of which the second release has learned nothing, are a slice of it: what this
    one made of a day that was to come. Raises DataError if no row judges.
    """
    start_s = max(roles.since_s, day.end_s - config.night.judge_days * DAY_S)
    return compare(
        run, config, histories, release_ids, Period(start_s, day.end_s),
        rows=config.night.judge_rows, roles=roles, newest_s=day.start_s,
    )


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
    sittings = [
        Sitting(registry.root, each, serving, exclude_seen, config.adapters.num_workers)
        for each in release_ids
    ]
    return hold_exam(run, config, exam, histories, sittings)


def hold_exam(
    out: str, config: EngineConfig, exam: Artifact, histories: Artifact,
    sittings: Sequence[Sitting],
) -> Artifact:
    """Let one or two releases sit an exam; return the report, measured as a configuration says."""
    answers = []
    for each in sittings:
        scores = sit_exam(out, exam, histories, each)
        answers.append(Answers.read(Registry(each.registry), each.release_id, scores))
    return report_exam(out, exam, answers, Settings(
        config.evaluation.bootstrap_draws, config.run.seed, config.evaluation.max_rows
    ))
