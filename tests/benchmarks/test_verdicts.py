"""Challengers of one night, and what is made of the verdicts on them."""

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.nights import verdicts
from benchmarks.nights.plan import read_plan
from benchmarks.nights.poison import poison, poison_day
from benchmarks.nights.verdicts import SameNight, rate_line, rates_of, read_verdicts_plan
from engine import storage
from engine.artifacts import Artifact
from engine.errors import ConfigError

REPO = Path(__file__).resolve().parents[2]
DAY = pa.table({
    "user_id": ["a", "b", "c", "d"], "item_id": ["1", "2", "3", "4"], "timestamp": [1, 2, 3, 4],
    "rating": [5.0, 4.0, 2.0, 1.0], "label": pa.array([1, 1, 0, 0], pa.int8()),
})


def test_flipped_events_have_the_rating_and_label_of_one_with_the_other_label() -> None:
    found = poison(DAY, "flip", 1.0, np.random.default_rng(1))
    assert found["label"].to_pylist() == [0, 0, 1, 1]
    for rating, label in zip(found["rating"].to_pylist(), found["label"].to_pylist(), strict=True):
        assert rating in ((4.0, 5.0) if label else (1.0, 2.0))
    assert found.schema == DAY.schema
    for name in ("user_id", "item_id", "timestamp"):
        assert found[name] == DAY[name]


def test_a_day_of_one_label_cannot_be_flipped() -> None:
    liked = DAY.slice(0, 2)
    assert poison(liked, "flip", 1.0, np.random.default_rng(1)) == liked


@given(st.integers(0, 2**31), st.sampled_from(["flip", "draw"]))
def test_what_is_not_chosen_stays_and_what_is_drawn_is_of_the_day(seed: int, how: Any) -> None:
    assert poison(DAY, how, 0.0, np.random.default_rng(seed)) == DAY
    found = poison(DAY, how, 0.5, np.random.default_rng(seed))
    pairs = {*zip(DAY["rating"].to_pylist(), DAY["label"].to_pylist(), strict=True)}
    assert {*zip(found["rating"].to_pylist(), found["label"].to_pylist(), strict=True)} <= pairs


def test_a_poisoned_day_is_a_folder_like_the_day(tmp_path: Path) -> None:
    day = tmp_path / "day-001"
    storage.write_table(str(day / "interactions/part-00000.parquet"), DAY)
    for name in ("items", "users"):
        storage.write_table(str(day / f"{name}.parquet"), pa.table({"x": [name]}))
    days = Artifact("days", "key", str(tmp_path), {})
    found = poison_day(str(tmp_path / "run"), days, str(day), "flip", 1.0, 7)
    assert found.facts == {"events": 4, "changed_labels": 4}
    uri = found.uri
    assert storage.read_table(f"{uri}/interactions/part-00000.parquet")["label"].to_pylist() == [
        0, 0, 1, 1,
    ]
    assert storage.read_table(f"{uri}/users.parquet").to_pylist() == [{"x": "users"}]
    assert poison_day(str(tmp_path / "run"), days, str(day), "flip", 1.0, 8).uri != uri


def test_the_plan_of_the_repository_tries_as_many_as_it_says(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPO)
    plan = read_verdicts_plan("benchmarks/nights/again/ml-100k.yaml")
    trials = plan.trials()
    assert sum(each["how"] == "equal" for each in trials) == 40
    assert sum(each["share"] == 1.0 for each in trials) == 40
    assert len({tuple(each.values()) for each in trials}) == len(trials)
    assert plan.night <= read_plan(plan.nights).nights


def test_a_wrong_plan_is_named(tmp_path: Path) -> None:
    for wrong in ({"poisoned": {"melt": {1.0: 2}}}, {"night": 0}, {"night": 6}, {"speed": 1}):
        with pytest.raises(ConfigError, match=r"plan\.yaml"):
            read_verdicts_plan(_plan(tmp_path, **wrong))


def _plan(folder: Path, **values: Any) -> str:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({
        "title": "t", "nights": str(REPO / "benchmarks/nights/short.yaml"), "night": 1, "equal": 2,
        "poisoned": {"flip": {1.0: 1}}, **values,
    }))
    return str(path)


def test_rates_have_exact_intervals() -> None:
    trials = [{"how": "equal", "share": 0.0, "verdict": "promote"}] * 39 + [
        {"how": "equal", "share": 0.0, "verdict": "hold"},
        {"how": "flip", "share": 1.0, "verdict": "hold"},
    ]
    equal, flipped = rates_of(trials)
    assert rate_line(equal) == "equal: 39 of 40 promoted (share between 0.87 and 1.00)"
    assert rate_line(flipped) == (
        "flip 100% of the day: 0 of 1 promoted (share between 0.00 and 0.97)"
    )


class Judge:
    """Stands for the nights: promotes what is equal."""

    def __init__(self) -> None:
        self.judged: list[tuple[str, int]] = []

    def judge(self, trial: dict[str, Any]) -> dict[str, Any]:
        self.judged.append((trial["how"], trial["seed"]))
        verdict = "promote" if trial["how"] == "equal" else "hold"
        return {"verdict": verdict, "reasons": ["so it is"]}


def test_what_was_stopped_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = Judge()
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(SameNight, "prepare", lambda *_: judge)
    monkeypatch.setattr("jobs.start.start_ray", lambda: None)
    monkeypatch.setattr("jobs.start.configure_logging", lambda: None)
    ticks = iter([0.0, 1.0, 2.0, 100.0, *[0.0] * 9])
    monkeypatch.setattr(verdicts, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    out = str(tmp_path / "out.json")
    options = argparse.Namespace(plan=_plan(tmp_path), json=out, minutes=1.0)
    assert verdicts.run(options) == 1
    assert [each["seed"] for each in storage.read_json(out)["trials"]] == [1, 2]
    assert judge.judged == [("equal", 1), ("equal", 2)]
    assert verdicts.run(options) == 0
    assert judge.judged == [("equal", 1), ("equal", 2), ("flip", 1)]
    found = storage.read_json(out)
    assert [each["how"] for each in found["trials"]] == ["equal", "equal", "flip"]
    assert [each["promoted"] for each in found["rates"]] == [2, 0]
    assert "flip 100% of the day, seed 1: hold; so it is" in capsys.readouterr().out
    other = argparse.Namespace(plan=_plan(tmp_path, equal=1), json=out, minutes=1.0)
    assert verdicts.run(other) == 0
    assert len(storage.read_json(out)["trials"]) == 2       # another plan begins anew
