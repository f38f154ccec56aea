"""A challenger and the live release -> an exam on rows that neither learned ("exam_report")."""

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
    end_s: int,
) -> Artifact:
    """Return the report of the first release against the second on the newest rows that judge.

    Lists are ranked without the language model: they cost as much again, and nothing is decided by
    them. Raises DataError if no row judges.
    """
    registry, night = Registry(config.run.registry), config.night
    examined = [read_examined(registry, each) for each in release_ids]
    period = Period(max(roles.since_s, end_s - night.judge_days * DAY_S), end_s)
    exam = set_exam(
        run, histories, examined, period, llm_rows=night.judge_rows, roles=roles
    )
    serving = ServingConfig(
        model_cache=config.base_model.cache, device=config.base_model.device,
        threads=config.adapters.threads_per_worker, ranking=RankingConfig(llm_candidates=0),
    )
    exclude_seen = config.source.label.kind != "implicit"
    answers = []
    for release_id in release_ids:
        sitting = Sitting(
            registry.root, release_id, serving, exclude_seen, config.adapters.num_workers
        )
        scores = sit_exam(run, exam, histories, sitting)
        answers.append(Answers.read(registry.folder(release_id), release_id, scores))
    return report_exam(run, exam, answers, Settings(
        config.evaluation.bootstrap_draws, config.run.seed, config.evaluation.max_rows
    ))
