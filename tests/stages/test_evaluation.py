"""Fusion and evaluation on synthetic scores whose truth is known."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from engine import storage
from engine.config import EngineConfig, EvaluationConfig, TargetsConfig
from engine.errors import ArtifactError
from engine.metrics.ctr import auc
from engine.metrics.gates import gate_statistics
from engine.models.fusion import Fusion
from engine.stages.evaluation import evaluate, fit_fusion, group_seeds
from engine.stages.quality import find_table, quality_lines, summary_lines
from engine.stages.score_rows import read_all, read_sample
from engine.types import Window
from tests.synthetic_scores import NUM_USERS, ROWS, SAMPLED, make_scores

TARGETS = TargetsConfig(crm_auc=0.7, crm_full_auc=0.9, llm_auc=0.65, gate_variation=0.05)
CONFIG = EngineConfig(evaluation=EvaluationConfig(bootstrap_draws=200, targets=TARGETS))
SEEDS = (
    {"seed": 1, "window": "crm", "auc": 0.75, "slate_auc": 0.7, "gauc": 0.6},
    {"seed": 2, "window": "crm", "auc": 0.77, "slate_auc": 0.7, "gauc": 0.6},
    {"seed": 1, "window": "full", "auc": 0.78, "slate_auc": 0.72, "gauc": 0.61},
)


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    return make_scores(str(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def fusion(scores):
    return fit_fusion(scores.uri.rpartition("/")[0], CONFIG, scores)


@pytest.fixture(scope="module")
def evaluation(scores, fusion):
    run = scores.uri.rpartition("/")[0]
    recall = {"crm": 0.4, "popularity": 0.3}
    return evaluate(run, CONFIG, scores, fusion, recall=recall, crm_seeds=SEEDS)


@pytest.fixture(scope="module")
def report(evaluation):
    return storage.read_json(evaluation.path("report.json"))


def all_rows(scores, window) -> pa.Table:
    table = pa.concat_tables(storage.read_table(uri) for uri in scores.files("scores/"))
    return table.filter(pc.equal(table["window"], int(window)))


def test_fusion_is_fitted_on_the_validation_sample_alone(scores, fusion):
    table = all_rows(scores, Window.VALIDATION)
    table = table.filter(pc.is_valid(table["llm_logit"]))
    columns = {name: table[name].to_numpy() for name in table.column_names}
    expected = Fusion.fit(
        columns["crm_logit"], columns["llm_logit"], columns["label"], columns["popularity"]
    )
    stored = Fusion.from_json(storage.read_json(fusion.path("fusion.json")))
    assert stored == expected
    assert fusion.facts["validation"]["rows"] == SAMPLED * ROWS


def test_fusion_is_not_worse_than_the_crm_on_validation(fusion):
    losses = fusion.facts["validation"]["log_loss"]
    assert losses["fused"] <= losses["crm_calibrated"] <= losses["crm"]


def test_point_values_equal_the_metric_on_the_test_rows_alone(scores, report):
    table = all_rows(scores, Window.TEST)
    found = find_table(report, "test", "all")
    assert (found["num_rows"], found["num_users"]) == (NUM_USERS * ROWS, NUM_USERS)
    for model, column in (("crm_row", "crm_row_logit"), ("crm", "crm_logit")):
        expected = auc(table["label"].to_numpy(), table[column].to_numpy())
        assert found["models"][model]["auc"]["value"] == pytest.approx(expected)


def test_the_language_model_is_measured_on_the_sample_only(report):
    everything, sample = find_table(report, "test", "all"), find_table(report, "test", "sample")
    assert set(everything["models"]) == {"popularity", "crm_row", "crm", "crm_calibrated"}
    assert set(sample["models"]) == {*everything["models"], "zero_shot", "llm", "shuffled", "fused"}
    assert sample["num_rows"] == SAMPLED * ROWS


def test_models_stand_in_their_true_order(report):
    models = find_table(report, "test", "sample")["models"]
    auc = {name: each["auc"]["value"] for name, each in models.items()}
    assert auc["zero_shot"] == pytest.approx(0.5, abs=0.06)
    assert auc["zero_shot"] < auc["popularity"] < auc["shuffled"] < auc["llm"] < auc["fused"]
    assert all(each["auc"]["low"] < each["auc"]["value"] < each["auc"]["high"]
               for each in models.values())


def test_differences_are_paired_and_equal_the_difference_of_the_values(report):
    sample = find_table(report, "test", "sample")
    for pair, values in sample["differences"].items():
        one, other = pair.split(" - ")
        for metric, interval in values.items():
            first, second = sample["models"][one][metric], sample["models"][other][metric]
            assert interval["value"] == pytest.approx(first["value"] - second["value"])
    assert sample["differences"]["llm - zero_shot"]["auc"]["low"] > 0
    assert sample["differences"]["llm - shuffled"]["auc"]["low"] > 0


def test_calibration_mends_an_overconfident_crm(report):
    models = find_table(report, "test", "all")["models"]
    assert models["crm_calibrated"]["ece"]["value"] < models["crm"]["ece"]["value"]
    assert models["crm_calibrated"]["auc"]["value"] == pytest.approx(models["crm"]["auc"]["value"])


def test_history_length_buckets_hold_every_row_of_the_sample_once(report):
    buckets = report["history_lengths"]
    names = [bucket["history_length"] for bucket in buckets]
    assert names == ["under 20", "20 to 99", "100 to 499", "500 and over"]
    assert sum(bucket["num_rows"] for bucket in buckets) == SAMPLED * ROWS
    assert buckets[0]["num_users"] == 2                    # lengths 0 and 15
    for bucket in buckets:
        gain = bucket["auc"]["fused"]["value"] - bucket["auc"]["crm"]["value"]
        assert bucket["fused - crm"]["value"] == pytest.approx(gain)


def test_gates_are_those_of_each_test_user_s_first_slate(scores, report):
    tensors = storage.read_tensors(scores.path("gates.safetensors"))["gates"]
    slates = storage.read_json(scores.path("slates.json"))["slate_ids"]
    wanted = [
        place for place, slate in enumerate(slates)
        if slate.endswith(f":{int(Window.TEST)}:0")
    ]
    expected = gate_statistics(tensors[wanted])
    assert report["gates"]["num_users"] == SAMPLED
    assert report["gates"]["variation"] == pytest.approx(expected.variation)
    assert report["gates"]["load"] == pytest.approx(list(expected.load_K))
    assert np.shape(report["gates_heat_map"]) == (40, 4)


def test_quality_lines_say_what_was_met_and_what_was_missed(report):
    passed = [line["passed"] for line in report["quality"]]
    assert passed == [True, False, True, True, True, True, True, True]
    assert report["quality"][0]["measured"] == "0.7600"
    assert "mean of 2 seeds" in report["quality"][0]["name"]


EMPTY = {"tables": [], "crm_seeds": [], "gates": None, "shuffle": None, "recall": {},
         "settings": {"references": ["zero_shot", "shuffled"]}}


def test_a_reference_that_is_not_asked_for_has_no_line():
    names = {line.name for line in quality_lines(EMPTY, TARGETS)}
    without = {**EMPTY, "settings": {"references": ["zero_shot"]}}
    missing = names - {line.name for line in quality_lines(without, TARGETS)}
    assert missing == {"a derangement of users' gates changes the LLM's scores"}
    neither = {**EMPTY, "settings": {"references": []}}
    assert len(quality_lines(neither, TARGETS)) == len(names) - 2


def test_a_line_that_was_not_measured_is_missed():
    lines = quality_lines(EMPTY, TARGETS)
    assert len(lines) == 7
    assert not any(line.passed for line in lines)
    assert {line.measured for line in lines} == {"not measured"}


def test_retrieval_must_find_more_than_popularity(report):
    worse = {**report, "recall": {"crm": 0.3, "popularity": 0.3}}
    lines = [*quality_lines(report, TARGETS), *quality_lines(worse, TARGETS)]
    assert [line.passed for line in lines if "Recall" in line.name] == [True, False]


def test_a_fused_score_surely_below_the_crm_is_missed(report):
    table = find_table(report, "test", "sample")
    worse = {"value": -0.02, "low": -0.03, "high": -0.01}
    differences = {**table["differences"], "fused - crm": {"auc": worse}}
    changed = {**report, "tables": [{**table, "differences": differences}]}
    lines = {line.name: line.passed for line in quality_lines(changed, TARGETS)}
    assert not lines["fused not below the CRM, test AUC"]
    assert lines["LLM above zero-shot, test AUC"]


def test_the_summary_prints_every_model_and_every_line_once(report):
    lines = summary_lines(report)
    assert lines[0].startswith("fusion: ")
    assert sum("all/" in line for line in lines) == 4
    assert sum("sample/" in line for line in lines) == 8
    assert sum(line.startswith("MISSED") for line in lines) == 1
    assert len(lines) == 2 + 12 + 8


def test_seeds_are_grouped_by_window():
    crm, full = group_seeds(SEEDS)
    assert (crm["window"], full["window"]) == ("crm", "full")
    assert crm["mean"]["auc"] == pytest.approx(0.76)
    assert (crm["low"]["auc"], crm["high"]["auc"]) == (0.75, 0.77)
    assert len(full["runs"]) == 1


def test_recall_seeds_and_provenance_pass_through(scores, fusion, report):
    assert report["recall"] == {"crm": 0.4, "popularity": 0.3}
    assert report["artifacts"] == {"scores": scores.key, "fusion": fusion.key}
    assert report["settings"]["draws"] == 200


def test_facts_hold_the_test_metrics_by_path(evaluation, report):
    value = find_table(report, "test", "sample")["models"]["fused"]["auc"]["value"]
    assert evaluation.facts["sample/fused/auc"] == pytest.approx(value, abs=1e-5)
    assert evaluation.facts["all/crm_row/gauc"] is not None


def test_a_second_evaluation_gives_the_same_bytes(scores, fusion, report, tmp_path):
    again = evaluate(
        str(tmp_path), CONFIG, scores, fusion, recall=report["recall"], crm_seeds=SEEDS
    )
    assert storage.read_json(again.path("report.json")) == report


def test_repeat_and_new_rows_are_reported_apart(tmp_path):
    scores = make_scores(str(tmp_path), implicit=True)
    fusion = fit_fusion(str(tmp_path), CONFIG, scores)
    report = storage.read_json(evaluate(str(tmp_path), CONFIG, scores, fusion).path("report.json"))
    rows = {
        kind: find_table(report, "test", "sample", kind)["num_rows"]
        for kind in ("all", "repeat", "new")
    }
    half = SAMPLED * ROWS // 2
    assert rows == {"all": 2 * half, "repeat": half, "new": half}


def test_more_rows_than_the_limit_are_sampled_by_whole_users(scores):
    limited = read_all(scores, Window.TEST, max_rows=600)
    again = read_all(scores, Window.TEST, max_rows=600)
    assert limited.total == NUM_USERS * ROWS
    assert 300 <= len(limited.rows) <= 900
    assert len(limited.rows) == limited.rows.num_users * ROWS
    assert np.array_equal(limited.scores["crm_logit"], again.scores["crm_logit"])


def test_a_window_without_rows_is_an_error_that_names_it(scores):
    with pytest.raises(ArtifactError, match="BANK"):
        read_sample(scores, Window.BANK)


def test_gates_that_do_not_fit_their_slates_are_refused(tmp_path):
    scores = make_scores(str(tmp_path), seed=1)
    fusion = fit_fusion(str(tmp_path), CONFIG, scores)
    storage.write_json(scores.path("slates.json"), {"slate_ids": ["x"], "user_ids": ["y"]})
    with pytest.raises(ArtifactError, match="160 gates for 1 slates"):
        evaluate(str(tmp_path), CONFIG, scores, fusion)
