"""When a night is judged by which days, and by whom."""

from threading import Barrier
from typing import Any

import pytest

from engine.config import EngineConfig, ServingConfig
from engine.data.roles import Roles
from engine.data.splits import DAY_S
from engine.errors import EmptyExamError
from engine.stages import judgement
from engine.stages.exam import Period
from engine.stages.release_scores import Sitting

SINCE_S = 1_000 * DAY_S
CONFIG = EngineConfig.model_validate({"night": {"judge_days": 10, "old_days": 5}})
ROLES = Roles(CONFIG.night.roles, SINCE_S)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Period]:
    """Return the periods that releases are compared on."""
    found: list[Period] = []

    def compare(*arguments: Any, rows: int, roles: Roles) -> str:
        assert (rows, roles) == (CONFIG.night.judge_rows, ROLES)
        found.append(arguments[4])
        return "a report"

    monkeypatch.setattr(judgement, "compare", compare)
    return found


def remember(end_s: int, config: EngineConfig = CONFIG) -> Any:
    histories: Any = None
    return judgement.judge_memory("run", config, histories, ["new", "live"], ROLES, end_s)


def test_the_newest_days_begin_with_the_roles_and_then_move_on() -> None:
    for days, first in ((1, 0), (10, 0), (12, 2), (40, 30)):
        end_s = SINCE_S + days * DAY_S
        found = judgement.newest_period(CONFIG, ROLES, end_s)
        assert found == Period(SINCE_S + first * DAY_S, end_s)


def test_the_old_panel_stays_the_same_once_it_is_past(asked: list[Period]) -> None:
    assert remember(SINCE_S + 15 * DAY_S - 1) is None
    assert not asked
    for days in (15, 16, 400):
        assert remember(SINCE_S + days * DAY_S) == "a report"
    assert asked == [Period(SINCE_S, SINCE_S + 5 * DAY_S)] * 3


def test_nobody_asks_an_old_panel_without_days(asked: list[Period]) -> None:
    none = CONFIG.model_copy(update={"night": CONFIG.night.model_copy(update={"old_days": 0})})
    assert remember(SINCE_S + 400 * DAY_S, none) is None
    assert not asked


def test_an_old_panel_without_a_row_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(*_: Any, **__: Any) -> None:
        raise EmptyExamError("no row to examine")

    monkeypatch.setattr(judgement, "compare", compare)
    assert remember(SINCE_S + 400 * DAY_S) is None


class Answered:
    """Stands for what a release answered."""

    @staticmethod
    def read(_: Any, release_id: str, scores: str) -> tuple[str, str]:
        return release_id, scores


@pytest.mark.parametrize("others", [[], ["live"], ["new"]])
def test_releases_sit_an_exam_at_once_and_none_twice(
    monkeypatch: pytest.MonkeyPatch, others: list[str]
) -> None:
    ids = ["new", *others]
    together = Barrier(len(set(ids)), timeout=30)

    def sit(out: str, exam: Any, histories: Any, sitting: Sitting) -> str:
        together.wait()
        return f"answers of {sitting.release_id}"

    monkeypatch.setattr(judgement, "sit_exam", sit)
    monkeypatch.setattr(judgement, "Answers", Answered)
    monkeypatch.setattr(judgement, "report_exam", lambda *arguments: arguments[2])
    nothing: Any = None
    sittings = [Sitting("releases", each, ServingConfig(), exclude_seen=True) for each in ids]
    found: Any = judgement.hold_exam("out", CONFIG, nothing, nothing, sittings)
    assert found == [(each, f"answers of {each}") for each in ids]
