"""The report of a small synthetic run."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from engine import artifacts, storage
from engine.config import EngineConfig, EvaluationConfig, SourceConfig
from engine.errors import ArtifactError
from engine.stages import plots
from engine.stages.adapters import LEARNING, learning_curve
from engine.stages.evaluation import evaluate, fit_fusion
from engine.stages.page import format_interval, format_term, reading
from engine.stages.report import changed_settings, flatten, render, write_report
from tests.synthetic_scores import make_scores

CONFIG = EngineConfig(
    evaluation=EvaluationConfig(bootstrap_draws=100), source=SourceConfig(path="<data> & more")
)
TIMELINE = {"start_s": 0, "t0_s": 86_400, "t1_s": 172_800, "t2_s": 259_200, "end_s": 345_600}
SEEDS = (
    {"seed": 3, "window": "crm", "auc": 0.75, "slate_auc": 0.7, "gauc": 0.6},
    {"seed": 3, "window": "full", "auc": 0.76},
)


def simple(run, kind, facts, files):
    def write(folder):
        for name, value in files.items():
            storage.write_json(storage.join(folder, name), value)
        return facts

    return artifacts.make(run, kind, {}, [], write)


def curve(steps):
    rng = np.random.default_rng(0)
    return [
        {"step": step, "loss": 0.7 - 0.1 * step / steps + 0.03 * float(rng.normal()),
         "gate_entropy": 1 - 0.3 * step / steps, "gate_variation": 0.1 * step / steps}
        for step in range(steps)
    ]


def all_artifacts(run, *, implicit=False, references=True):
    facts = {"events": 100_000, "quarantined": {"events": {"unparsable time": 12}, "items": {}}}
    windows = {"crm": 64_000, "bank": 16_000, "validation": 10_000, "test": 10_000}
    data = [
        simple(run, "interactions", facts, {}),
        simple(run, "histories", {"users": 943, "windows": windows}, {"timeline.json": TIMELINE}),
        simple(run, "slates", {"test/slates": 1_100}, {}),
        simple(run, "crm", {"final_loss": 0.52}, {"curve.json": curve(900)}),
        simple(run, "bank", {"steps": 300}, {"curve.json": curve(300), LEARNING: [
            {"labels": 40.0 * place, "pairs": 200.0, "auc": 0.5 + 0.01 * place}
            for place in range(10)
        ]}),
    ]
    scores = make_scores(run, implicit=implicit, references=references)
    fusion = fit_fusion(run, CONFIG, scores)
    recall = {"crm": 0.41, "popularity": 0.33}
    return [
        *data, scores, fusion, evaluate(run, CONFIG, scores, fusion, recall=recall, crm_seeds=SEEDS)
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    run = str(tmp_path_factory.mktemp("run"))
    return write_report(run, CONFIG, all_artifacts(run))


@pytest.fixture(scope="module")
def page(written):
    return storage.read_bytes(written.path("index.html")).decode()


class Checker(HTMLParser):
    """Collects what a page loads and whether its elements are closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.tags, self.links = [], [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        values = dict(attrs)
        self.sources += [values["src"]] if "src" in values else []
        self.links += [values["href"]] if "href" in values else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert not checker.tags & {"script", "link", "iframe"}
    assert all(source.startswith("data:image/svg+xml;base64,") for source in checker.sources)
    assert all(link.startswith("#") for link in checker.links)
    assert len(checker.sources) == 7   # AUC, lengths, reliability, gates, two curves, learning


def test_every_link_of_the_page_has_a_target(page):
    for target in re.findall(r'href="#(\w+)"', page):
        assert f'id="{target}"' in page


def test_text_from_settings_is_escaped(page):
    assert "&lt;data&gt; &amp; more" in page
    assert "<data>" not in page


def test_the_page_shows_what_was_measured(page, written):
    report = storage.read_json(written.path("report.json"))
    for table in report["evaluation"]["tables"]:
        if table["window"] == "test":
            for values in table["models"].values():
                assert f"{values['auc']['value']:.4f}" in page
    for line in report["evaluation"]["quality"]:
        assert line["measured"] in page
    for text in ("unparsable time", "64,000", "1970-01-03 00:00:00", "0.4100", "Recall@200"):
        assert text in page


def test_report_json_holds_curves_data_stages_and_settings(written):
    report = storage.read_json(written.path("report.json"))
    assert set(report["curves"]) == {"crm", "bank"}
    assert report["data"]["histories"]["users"] == 943
    assert [stage["kind"] for stage in report["stages"]][-3:] == ["scores", "fusion", "evaluation"]
    assert report["settings"] == CONFIG.settings()
    assert report["timeline"] == TIMELINE


def test_the_same_report_gives_the_same_page(written, page):
    assert render(storage.read_json(written.path("report.json"))) == page


def test_a_run_without_curves_and_gates_still_has_a_page(tmp_path):
    run = str(tmp_path)
    kept = [each for each in all_artifacts(run) if each.kind in ("scores", "evaluation")]
    written = write_report(run, CONFIG, kept)
    report = storage.read_json(written.path("report.json"))
    report["evaluation"].update({"gates": None, "shuffle": None, "recall": {}, "crm_seeds": []})
    text = render(report)
    assert "No curves were recorded" in text
    assert "No gates were recorded" in text


def test_repeat_and_new_rows_have_tables_of_their_own(tmp_path):
    run = str(tmp_path)
    written = write_report(run, CONFIG, all_artifacts(run, implicit=True))
    page = storage.read_bytes(written.path("index.html")).decode()
    assert "repeat purchases" in page
    assert "items new to the user" in page


def test_a_report_without_an_evaluation_is_refused(tmp_path):
    run = str(tmp_path)
    with pytest.raises(ArtifactError, match="needs an evaluation"):
        write_report(run, CONFIG, [simple(run, "interactions", {}, {})])


@pytest.mark.parametrize(
    ("low", "high", "metric", "word"),
    [(0.1, 0.2, "auc", "better"), (-0.2, -0.1, "auc", "worse"), (-0.1, 0.1, "auc", "unclear"),
     (0.1, 0.2, "log_loss", "worse"), (-0.2, -0.1, "ece", "better")],
)
def test_a_reading_knows_which_way_is_better(low, high, metric, word):
    assert reading({"value": 0, "low": low, "high": high}, metric, 50) == word
    assert reading({"value": 0, "low": low, "high": high}, metric, 5) == "few"
    assert reading(None, metric, 50) == "unclear"


def test_a_missing_value_is_a_dash():
    assert format_interval(None) == ("-", "")
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    assert format_interval(interval, "+") == ("+0.5000", "+0.4000 to +0.6000")


def test_facts_become_paths():
    assert flatten({"a": {"b": 1, "c": [1, 2]}, "d": "x"}) == {"a/b": 1, "a/c": "[1, 2]", "d": "x"}


def test_only_changed_settings_are_listed():
    assert changed_settings(CONFIG.settings()) == {
        "evaluation/bootstrap_draws": (100, 1000),
        "source/path": ("<data> & more", "cache/ml-100k"),
    }


def test_a_curve_of_one_step_can_be_drawn():
    assert "<svg" in plots.curve_figure([{"step": 0, "loss": 0.7}])


def test_auc_against_training_samples_is_that_of_the_first_epochs_stretches():
    points = [(10, 20, 11), (10, 20, 13), (6, 0, 0), (10, 40, 30), (10, 10, 8)]
    steps = [
        {"epoch": epoch, "labels": labels, "pairs": pairs, "pairs_in_order": in_order}
        for epoch in (0, 1) for labels, pairs, in_order in points
    ]
    assert learning_curve(steps, points=3) == [
        {"labels": 10.0, "pairs": 40, "auc": 0.6},      # steps 0 and 1: 0 to 20 labels
        {"labels": 28.0, "pairs": 40, "auc": 0.75},     # steps 2 and 3: 20 to 36
        {"labels": 41.0, "pairs": 10, "auc": 0.8},      # step 4: 36 to 46
    ]
    assert learning_curve(steps[2:3]) == learning_curve(steps[5:]) == []


def test_a_negative_last_term_is_subtracted():
    assert format_term(-0.204) == "- 0.204"
    assert format_term(0.1) == "+ 0.100"


def test_references_are_on_the_page_only_if_they_were_scored(tmp_path):
    row = re.compile(r"<td[^>]*>\s*(zero-shot LLM|LLM, shuffled gates)")
    pages = [
        write_report(run := str(tmp_path / name), CONFIG, all_artifacts(run, references=scored))
        for name, scored in (("with", True), ("without", False))
    ]
    found = [row.findall(storage.read_bytes(page.path("index.html")).decode()) for page in pages]
    assert set(found[0]) == {"zero-shot LLM", "LLM, shuffled gates"}
    assert found[1] == []
