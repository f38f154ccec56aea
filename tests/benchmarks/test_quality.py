"""Plans and paired comparisons of benchmarks/quality."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from benchmarks.quality.__main__ import units, write_row
from benchmarks.quality.comparison import Comparison, Sheet, mean
from benchmarks.quality.item_text import fit
from benchmarks.quality.plan import Plan, read_plan
from benchmarks.quality.probe import Probe
from benchmarks.quality.rows import ROWS
from benchmarks.quality.training import Trained, when_trained
from engine.errors import ConfigError
from engine.metrics.ctr import SHOWN, auc
from engine.metrics.estimates import Estimate
from engine.models.fusion import IDENTITY, Fusion
from tests.synthetic_scores import make_scores

REPO = Path(__file__).resolve().parents[2]
EVENTS = np.concatenate([[0], np.repeat([0, 7, 40], [4, 6, 10])])
"""Training events by item of the synthetic scores."""
FUSION = Fusion(0.5, 1.0, 0.0, IDENTITY, IDENTITY)


@pytest.mark.parametrize("path", sorted((REPO / "benchmarks/quality").glob("*.yaml")))
def test_every_row_of_every_plan_is_a_valid_configuration(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPO)
    plan = read_plan(str(path))
    shared = plan.engine_config()
    for name in plan.rows:
        row = ROWS[name]
        config = plan.row_config(row, rate=0.5)
        assert config.adapters.learning_rate == shared.adapters.learning_rate / 2
        assert config.evaluation.references == row.references
        assert (config.bank.num_adapters == 1) == name.startswith("lora")
        if not row.in_candidate_scope:
            sample = (shared.adapters.max_slates, shared.evaluation.test_rows)
            assert (config.adapters.max_slates, config.evaluation.test_rows) == sample


@pytest.mark.parametrize(("text", "message"), [
    ("title: x", "config"),
    ("{title: x, config: y, rows: [bank-none]}", "bank-none"),
    ("{title: x, config: y, rows: [lora-8], once: [lora-64]}", "lora-64"),
    ("{title: x, config: y, rows: [lora-8], tuned: [lora-64]}", "lora-64"),
    ("[", "plan"),
])
def test_a_wrong_plan_is_an_error_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_plan(str(path))


class FakeBench:
    """A bench whose one row is trained, at a time that can be set."""

    def __init__(self) -> None:
        self.made_s = 1

    def train(self, name: str, seed: int) -> Trained:
        bank = Mock(key="b", manifest=lambda: {"made_s": self.made_s, "code": "abc"})
        return Trained(bank, Mock(key="s"), Mock())


def test_a_file_is_written_again_when_its_row_was_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, path = FakeBench(), tmp_path / "bank-user-1.json"
    metrics = {key: {"value": 0.5} for key in SHOWN}

    def describe(_: object, name: str, seed: int, trained: Trained) -> dict[str, Any]:
        keys = {"bank": trained.bank.key, "scores": trained.scores.key}
        return {**when_trained(trained), "artifacts": keys,
                "test": {"models": {"llm": metrics, "fused": metrics}}}

    monkeypatch.setattr("benchmarks.quality.training.describe", describe)
    for made_s, commit, expected in ((1, "first", "first"), (1, "second", "first"),
                                     (2, "third", "third")):
        bench.made_s = made_s
        write_row(bench, tmp_path, "bank-user", 1, {"commit": commit})
        assert json.loads(path.read_text())["commit"] == expected


def test_every_row_is_trained_before_any_row_twice() -> None:
    plan = Plan(title="x", config="y", seeds=(1, 2), rows=("lora-8", "lora-64", "bank-user"),
                once=("lora-64",))
    assert list(units(plan, ["lora-64", "lora-8"])) == [
        ("lora-8", 1), ("lora-64", 1), ("lora-8", 2)
    ]


def test_seeds_are_averaged_draw_by_draw() -> None:
    found = mean([Estimate(1.0, np.array([1.0, 2.0])), Estimate(3.0, np.array([3.0, 6.0]))])
    assert found.value == 2.0
    np.testing.assert_array_equal(found.draws_D, [2.0, 4.0])


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Sheet:
    scores = make_scores(str(tmp_path_factory.mktemp("scores")))
    return Sheet(scores, FUSION, EVENTS)


def test_a_row_differs_from_itself_by_nothing_and_from_noise_by_much(sheet: Sheet) -> None:
    comparison = Comparison(
        {"bank-user": [sheet], "lora-64": [sheet, sheet]}, num_draws=200, seed=1
    )
    found = {(each["first"], each["second"]): each for each in comparison.to_json()}
    same = found["bank-user/llm", "lora-64/llm"]
    assert same["seeds"] == [1, 2]
    for interval in same["difference"].values():
        assert interval == pytest.approx({"value": 0, "low": 0, "high": 0})
    assert found["bank-user/llm", "bank-user/zero_shot"]["difference"]["auc"]["low"] > 0.1
    assert ("bank-user/llm", "bank-user/shuffled") in found


def test_what_a_row_adds_to_the_crm_is_split_by_slices_that_part_the_rows(sheet: Sheet) -> None:
    comparison = Comparison({"bank-user": [sheet]}, num_draws=50, seed=1)
    [added] = [each for each in comparison.to_json() if each["first"] == "bank-user/fused"]
    sizes = {name: each["num_rows"] for name, each in added["slices"].items()}
    for part in ("history ", "items "):
        assert sum(n for name, n in sizes.items() if name.startswith(part)) == added["num_rows"]
    table = sheet.table
    cold = table[EVENTS[table["item"]] == 0]
    assert sizes["items without an event in training"] == len(cold) > 0
    expected = auc(cold["label"], cold["fused"]) - auc(cold["label"], cold["crm_calibrated"])
    found = added["slices"]["items without an event in training"]["difference"]["auc"]
    assert found["value"] == pytest.approx(expected)


def test_a_probe_learns_the_order_within_slates_and_not_who_is_generous() -> None:
    vectors = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    probe = Probe(
        items_N=np.array([1, 2, 1, 2, 3, 3, 3]), labels_N=np.array([1, 0, 1, 0, 1, 1, 1]),
        slates_N=np.array([0, 0, 1, 1, 2, 2, 2]), vectors_ID=vectors,
    )
    scores = probe.by_vectors()
    assert scores[1] > 0 > scores[2] == pytest.approx(-scores[1])
    assert scores[3] == pytest.approx(0, abs=1e-6)      # its slate has one label only
    mean = 5 / 7
    expected = [mean, (2 + 5 * mean) / 7, 5 * mean / 7, (3 + 5 * mean) / 8]
    assert probe.by_rates() == pytest.approx(expected)


def test_texts_add_to_the_crm_what_it_does_not_know_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    crm_N, text_ND = rng.normal(size=6000), rng.normal(size=(6000, 4))
    for weight, gain in ((0.0, 0.0), (1.0, 0.08)):
        chances_N = 1 / (1 + np.exp(-crm_N - weight * text_ND[:, 0]))
        labels_N = (rng.random(6000) < chances_N).astype(np.int64)
        features_NF = np.column_stack([crm_N, text_ND])
        learned, chosen, asked = slice(0, 2000), slice(2000, 4000), slice(4000, 6000)
        linear = fit(features_NF[learned], labels_N[learned], features_NF[chosen], labels_N[chosen])
        logits_N = linear.model.decision_function(features_NF[asked])
        added = auc(labels_N[asked], logits_N) - auc(labels_N[asked], crm_N[asked])
        assert added == pytest.approx(gain, abs=0.03)


def test_rows_that_scored_other_users_are_compared_where_both_did(sheet: Sheet) -> None:
    part = Sheet.__new__(Sheet)
    users = sorted(sheet.table["user_id"].unique())[:10]
    shuffled = sheet.table.sample(frac=1, random_state=0)
    part.table = shuffled[shuffled["user_id"].isin(users)]
    comparison = Comparison(
        {"bank-user": [sheet], "bank-target-tokens": [part]}, num_draws=100, seed=1
    )
    found = comparison.compare(("bank-target-tokens", "llm"), ("bank-user", "llm"))
    assert found["num_users"] == 10
    assert found["num_rows"] == len(part.table)
    assert found["difference"]["auc"] == pytest.approx({"value": 0, "low": 0, "high": 0})
