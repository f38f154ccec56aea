"""Plans and paired comparisons of benchmarks/quality."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from benchmarks.quality.__main__ import compare, missing, units, write_row
from benchmarks.quality.comparison import Comparison, answered_rows, asked_rows, mean
from benchmarks.quality.item_text import fit
from benchmarks.quality.plan import Plan, read_plan
from benchmarks.quality.probe import Probe
from benchmarks.quality.results import Results
from benchmarks.quality.rows import ROWS
from benchmarks.quality.training import Bench, Trained
from engine import storage
from engine.artifacts import Artifact
from engine.data.schema import PROMPTS, SLATES, part_name
from engine.errors import ArtifactError, ConfigError
from engine.metrics.ctr import SHOWN, auc
from engine.metrics.estimates import Estimate
from engine.models.fusion import IDENTITY, Fusion
from engine.types import Window
from tests.synthetic_scores import ROWS as ROWS_OF_USER
from tests.synthetic_scores import SAMPLED, make_scores

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
    ("{title: x, config: y, rows: [lora-8], rates: {lora-64: [1]}}", "lora-64"),
    ("{title: x, config: y, rows: [lora-8], rates: {lora-8: []}}", "lora-8.*one or more"),
    ("{title: x, config: y, rows: [lora-8], rates: {lora-8: [1, 0]}}", "lora-8.*> 0"),
    ("[", "plan"),
])
def test_a_wrong_plan_is_an_error_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_plan(str(path))


class FakeBench(Bench):
    """A bench of one row whose training only leaves made-up scores."""

    def __init__(self, plan: Plan, results: Results, root: str) -> None:
        self.plan, self.results, self.root = plan, results, root
        self.config = plan.engine_config()
        self.trained: list[tuple[str, int]] = []

    def train(self, name: str, seed: int) -> Trained:
        self.trained.append((name, seed))
        return Mock(scores=make_scores(self.root), fitted=lambda: FUSION)

    def references(self) -> Any:
        return Mock(describe=lambda name: {"row": name})

    def asked_rows(self, name: str) -> pd.DataFrame:
        return asked_of(make_scores(self.root))


def test_a_row_is_trained_once_for_its_settings_wherever_that_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPO)

    def describe(bench: Bench, name: str, seed: int, _: Trained) -> dict[str, Any]:
        metrics = {key: {"value": 0.5} for key in SHOWN}
        return {"row": name, "seed": seed, "rate": 0.25, "test": {"models": {
            "llm": metrics, "fused": metrics}}, "settings_digest": bench.settings_digest(name)}

    monkeypatch.setattr("benchmarks.quality.training.describe", describe)
    results = Results(tmp_path / "results")
    plan = read_plan(str(REPO / "benchmarks/quality/ml-100k.yaml"))
    here = FakeBench(plan, results, str(tmp_path / "here"))
    assert here.done("bank-user", 1) is None
    write_row(here, results, "bank-user", 1, {"commit": "c"})
    assert here.done("bank-user", 1)["commit"] == "c"       # type: ignore[index]

    elsewhere = FakeBench(plan, results, str(tmp_path / "elsewhere"))
    assert elsewhere.done("bank-user", 1)
    assert elsewhere.best_rate("bank-user") == 0.25
    (results.folder / "comparisons.json").unlink()
    compare(elsewhere, results, {})
    assert elsewhere.trained == []
    pairs = json.loads((results.folder / "comparisons.json").read_text())["pairs"]
    assert ("bank-user/llm", "bank-user/zero_shot") in {(p["first"], p["second"]) for p in pairs}

    changed = plan.model_copy(update={"overrides": {**plan.overrides, "bank.rank": 4}})
    assert FakeBench(changed, results, str(tmp_path / "changed")).done("bank-user", 1) is None
    moved = plan.model_copy(update={"overrides": {**plan.overrides, "run.root": "/elsewhere"}})
    assert FakeBench(moved, results, str(tmp_path / "moved")).done("bank-user", 1)
    monkeypatch.setattr("benchmarks.quality.training.dtype_name", lambda _: "another")
    assert elsewhere.done("bank-user", 1) is None           # other vectors, prompts and CRM


def test_only_what_has_no_file_of_the_same_settings_is_made_and_rows_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPO)
    plan = read_plan(str(REPO / "benchmarks/quality/ml-100k.yaml"))
    plan = plan.model_copy(update={
        "rows": ("bank-user", "lora-8"), "once": ("lora-8",), "seeds": (1, 2), "lists": "bank-user",
        "references": ("popularity", "crm"),
    })
    results = Results(tmp_path / "results")
    names = ["bank-user", "lora-8", "popularity", "crm", "lists"]

    def left(changed: Plan = plan) -> list[str]:
        bench = FakeBench(changed, results, str(tmp_path / "run"))
        return [title for title, _ in missing(bench, names, {})]

    every = [
        "bank-user, seed 1", "lora-8, seed 1", "bank-user, seed 2", "popularity", "crm", "lists",
    ]
    assert left() == every
    bench = FakeBench(plan, results, str(tmp_path / "run"))
    for title, write in missing(bench, ["crm"], {"commit": "c"}):
        assert title == "crm"
        write()
    assert left() == [each for each in every if each != "crm"]
    changed = plan.model_copy(update={"overrides": {**plan.overrides, "crm.epochs": 1}})
    assert left(changed) == every


def test_a_row_takes_the_rate_that_it_or_the_first_of_its_kind_chose(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(REPO)
    plan = read_plan(str(REPO / "benchmarks/quality/ml-100k.yaml"))
    rates = dict.fromkeys(("bank-user", "bank-uniform", "lora-64"), (1.0, 0.25))
    plan = plan.model_copy(update={"rates": rates})
    bench = FakeBench(plan, Results(tmp_path), "")
    aucs = {"bank-user": {1.0: 0.6, 0.25: 0.5}, "bank-uniform": {1.0: 0.5, 0.25: 0.6},
            "lora-64": {1.0: 0.5, 0.25: 0.6}}
    monkeypatch.setattr(bench, "validation_aucs", aucs.__getitem__)
    expected = {"bank-user": 1, "bank-uniform": 0.25, "bank-hybrid": 1, "lora-64": 0.25,
                "lora-8": 0.25}
    assert {name: bench.best_rate(name) for name in expected} == expected

    def alone(rates: dict[str, tuple[float, ...]]) -> FakeBench:
        return FakeBench(plan.model_copy(update={"rates": rates}), Results(tmp_path), "")

    assert alone({}).best_rate("lora-8") == 1
    given = alone({"bank-user": (0.25,)})       # one rate is no choice: nothing is trained for it
    assert given.best_rate("bank-hybrid") == 0.25
    assert given.best_rate("lora-8") == 1
    one = given.settings_digest("lora-8")
    assert alone({"lora-64": (1.0,)}).settings_digest("lora-8") != one
    assert alone({"bank-user": (0.5,)}).settings_digest("lora-8") == one
    assert alone({"bank-user": (0.5,)}).settings_digest("bank-hybrid") != given.settings_digest(
        "bank-hybrid"
    )

    def overridden(name: str, value: float) -> FakeBench:
        overrides = {**plan.overrides, name: value}
        changed = plan.model_copy(update={"rates": {"bank-user": (0.25,)}, "overrides": overrides})
        return FakeBench(changed, Results(tmp_path), "")

    assert overridden("night.max_slates", 7).settings_digest("lora-8") == one
    assert overridden("adapters.max_slates", 7).settings_digest("lora-8") != one


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


def asked_of(scores: Artifact) -> pd.DataFrame:
    """Return the rows of the synthetic sample, through the tables that would have asked them."""
    tables = [storage.read_table(uri) for uri in scores.files("scores/")]
    rows = [row for table in tables for row in table.to_pylist() if row["llm_logit"] is not None]
    slates, prompts = [], []
    for _, found in groupby(rows, key=lambda row: row["slate_id"]):
        each = list(found)
        shared = {name: each[0][name] for name in ("slate_id", "user_id", "window")}
        slates.append({**shared, "items": [row["item"] for row in each],
                       "history_length": each[0]["history_length"]})
        prompts += [                                        # two prompts a slate
            {**shared, "first_slot": first,
             "labels": [row["label"] for row in each[first : first + 5]]}
            for first in (5, 0)
        ]
    made = []
    for kind, schema, lines in (("slates", SLATES, slates), ("prompts", PROMPTS, prompts)):
        uri = f"{scores.uri}-{kind}"
        table = pa.Table.from_pylist(lines, schema)
        storage.write_table(storage.join(uri, part_name(kind, 0)), table)
        made.append(Mock(files=lambda folder, uri=uri: [f"{uri}/{part_name(folder[:-1], 0)}"]))
    return asked_rows(*made, EVENTS)


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    scores = make_scores(str(tmp_path_factory.mktemp("scores")))
    return answered_rows(scores, FUSION, asked_of(scores))


def test_the_rows_that_were_asked_are_those_that_were_answered(sheet: pd.DataFrame) -> None:
    assert len(sheet) == SAMPLED * ROWS_OF_USER
    assert not sheet.isna().any().any()
    assert sheet.index.is_monotonic_increasing
    one = sheet.loc[f"u7:{Window.TEST}:1"]                  # the user's second slate of the test
    assert one["item"].tolist() == list(range(11, 21))
    assert set(one["history_length"]) == {105}
    assert one["item_events"].tolist() == EVENTS[11:21].tolist()
    assert auc(sheet["label"], sheet["llm"]) > 0.7          # labels beside their own logits


def test_logits_of_a_row_come_back_for_the_rows_they_were_made_for(
    sheet: pd.DataFrame, tmp_path: Path
) -> None:
    results = Results(tmp_path)
    asked = sheet[["user_id", "label", "item", "history_length", "item_events"]]
    results.write({"row": "bank-user", "seed": 1, "settings_digest": "d"}, sheet)
    row = results.row("bank-user", 1, "d")
    assert row is not None
    found = results.table(row, asked)
    np.testing.assert_array_equal(found["llm"], sheet["llm"].astype(np.float32))
    assert results.row("bank-user", 1, "another") is None
    assert results.row("bank-user", 2, "d") is None
    for wrong in (asked[1:], asked.assign(label=1 - asked["label"])):
        with pytest.raises(ArtifactError, match="bank-user-1"):
            results.table(row, wrong)


def test_a_row_differs_from_itself_by_nothing_and_from_noise_by_much(sheet: pd.DataFrame) -> None:
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


def test_what_a_row_adds_to_the_crm_is_split_by_slices_that_part_the_rows(
    sheet: pd.DataFrame,
) -> None:
    comparison = Comparison({"bank-user": [sheet]}, num_draws=50, seed=1)
    [added] = [each for each in comparison.to_json() if each["first"] == "bank-user/fused"]
    sizes = {name: each["num_rows"] for name, each in added["slices"].items()}
    for part in ("history ", "items "):
        assert sum(n for name, n in sizes.items() if name.startswith(part)) == added["num_rows"]
    cold = sheet[EVENTS[sheet["item"]] == 0]
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
        fitted = fit(features_NF[learned], labels_N[learned], features_NF[chosen], labels_N[chosen])
        logits_N = fitted.model.decision_function(features_NF[asked])
        added = auc(labels_N[asked], logits_N) - auc(labels_N[asked], crm_N[asked])
        assert added == pytest.approx(gain, abs=0.03)


def test_rows_that_scored_other_users_are_compared_where_both_did(sheet: pd.DataFrame) -> None:
    users = sorted(sheet["user_id"].unique())[:10]
    shuffled = sheet.sample(frac=1, random_state=0)
    part = shuffled[shuffled["user_id"].isin(users)]
    comparison = Comparison(
        {"bank-user": [sheet], "bank-target-tokens": [part]}, num_draws=100, seed=1
    )
    found = comparison.compare(("bank-target-tokens", "llm"), ("bank-user", "llm"))
    assert found["num_users"] == 10
    assert found["num_rows"] == len(part)
    assert found["difference"]["auc"] == pytest.approx({"value": 0, "low": 0, "high": 0})
