"""Releases examined on the window that they never learned from."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from engine import storage
from engine.artifacts import Artifact, open_artifact
from engine.config import ServingConfig
from engine.data.schema import EXAM_SCORES, RANKED_LISTS
from engine.recommender.candidates import Filters
from engine.recommender.loading import load_release
from engine.releases.registry import Registry
from engine.stages.recommendations import Ask, recommend_batch
from engine.state.database import open_database
from engine.state.histories import PastEvent, seed
from engine.types import Window
from jobs import evaluate
from jobs.seed_state import read_item_ids
from tests.serve_config import local_serve_config

pytestmark = pytest.mark.slow
RANKING = {"max_candidates": 30, "llm_candidates": 5, "max_k": 30, "max_history": 1000}


@dataclass(frozen=True)
class Examined:
    """What the job left."""

    outcome: Any
    config: Any
    folder: Path
    serve_config: str

    def kind(self, kind: str) -> Artifact:
        [name] = [name for name in storage.list_folders(str(self.folder / "out"))
                  if name.startswith(f"{kind}-")]
        return open_artifact(str(self.folder / "out" / name))

    def arguments(self, *more: str) -> list[str]:
        return ["--histories", self.outcome.histories.uri, "--serve-config", self.serve_config,
                "--out", str(self.folder / "out"), *more]


@pytest.fixture(scope="module")
def examined(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Examined:
    config, outcome = tiny_run
    folder = tmp_path_factory.mktemp("exam")
    serve = local_serve_config(
        config.run.registry, model_cache=config.base_model.cache, device="cpu", threads=1,
        ranking=RANKING,
    )
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(serve))
    found = Examined(outcome, config, folder, str(path))
    assert evaluate.main(found.arguments("--json", str(folder / "report.json"))) == 0
    return found


def table_of(artifact: Artifact, folder: str) -> pa.Table:
    return pa.concat_tables(storage.read_table(uri) for uri in artifact.files(f"{folder}/"))


def rows_by_key(table: pa.Table) -> dict[tuple[str, int, int], dict[str, Any]]:
    """Return rows by slate, item and label (an item may stand twice in a slate)."""
    return {(row["slate_id"], row["item"], row["label"]): row for row in table.to_pylist()}


def test_an_exam_of_the_test_window_repeats_the_scores_of_the_training(examined: Examined) -> None:
    trained = table_of(examined.outcome.scores, "scores")
    trained = trained.filter(pa.compute.equal(trained["window"], int(Window.TEST)))
    scores = table_of(examined.kind("release_scores"), "scores")
    assert scores.schema == EXAM_SCORES
    expected, found = rows_by_key(trained), rows_by_key(scores)
    assert found.keys() == expected.keys()
    for key, row in found.items():
        for name in ("user_id", "kind", "history_length"):
            assert row[name] == expected[key][name]
        for name in ("popularity", "crm_logit", "crm_row_logit"):
            assert row[name] == pytest.approx(expected[key][name], abs=1e-5), name
        assert (row["llm_logit"] is None) == (expected[key]["llm_logit"] is None)
        if row["llm_logit"] is not None:
            assert row["llm_logit"] == pytest.approx(expected[key]["llm_logit"], abs=1e-4)


def test_the_report_repeats_the_metrics_of_the_training(examined: Examined) -> None:
    report = json.loads((examined.folder / "report.json").read_text())
    trained = storage.read_json(examined.outcome.evaluation.path("report.json"))
    [release] = report["releases"]
    assert report["difference"] is None
    for rows in ("all", "sample"):
        [expected] = [each for each in trained["tables"] if
                      (each["window"], each["rows"], each["kind"]) == ("test", rows, "all")]
        [found] = [each for each in release["tables"] if
                   (each["rows"], each["slice"]) == (rows, "all")]
        assert found["num_rows"] == expected["num_rows"]
        for model, values in found["models"].items():
            for metric in ("auc", "gauc", "log_loss"):
                assert values[metric] == pytest.approx(expected["models"][model][metric], abs=1e-4)
    learning = storage.read_json(f"{examined.outcome.release}/bank/learning.json")
    assert release["learning"] == learning != []
    assert release["gates"]["variation"] == pytest.approx(trained["gates"]["variation"], abs=1e-4)


def test_slices_part_the_rows(examined: Examined) -> None:
    report = json.loads((examined.folder / "report.json").read_text())
    sizes = {each["slice"]: each["num_rows"] for each in report["releases"][0]["tables"]
             if each["rows"] == "all"}
    for one, other in (("new users", "old users"), ("cold items", "warm items"),
                       ("repeat items of the user", "new items of the user")):
        assert sizes.get(one, 0) + sizes.get(other, 0) == sizes["all"]
    assert sum(size for name, size in sizes.items() if name.startswith("history ")) == sizes["all"]


@pytest.fixture(scope="module")
def lists(examined: Examined) -> list[dict[str, Any]]:
    table = table_of(examined.kind("release_scores"), "lists")
    assert table.schema == RANKED_LISTS
    return table.to_pylist()


def test_a_list_is_what_the_endpoint_recommends_at_that_moment(
    examined: Examined, lists: list[dict[str, Any]], tmp_path: Path
) -> None:
    item_ids = read_item_ids(examined.outcome.histories.path("items.parquet"))
    chosen = list({row["user_id"]: row for row in lists}.values())      # the last of each user
    assert len(chosen) > 1
    database_url = f"sqlite:///{tmp_path}/state.db"
    database = open_database(database_url)
    seed(database, histories_before(examined, chosen, item_ids))
    registry = examined.config.run.registry
    serving = ServingConfig.model_validate({
        "database_url": database_url, "model_cache": examined.config.base_model.cache,
        "device": "cpu", "threads": 1, "ranking": RANKING,
    })
    release = load_release(Registry(registry), examined.outcome.release_id,
                           model_cache=examined.config.base_model.cache, device="cpu")
    ask = Ask(registry, examined.outcome.release_id, serving, 30, Filters())
    rankings = recommend_batch(release, database, ask, [row["user_id"] for row in chosen])
    for row, ranking in zip(chosen, rankings, strict=True):
        assert [item_ids[item] for item in row["full"]] == [i.item_id for i in ranking.items]
        assert sorted(row["crm"]) == sorted(row["full"])
    database.dispose()


def histories_before(
    examined: Examined, chosen: list[dict[str, Any]], item_ids: list[str]
) -> Iterator[tuple[str, list[PastEvent]]]:
    """Yield each user's history as the slate saw it."""
    lengths = {row["slate_id"]: row["history_length"]
               for row in table_of(examined.kind("exam"), "slates").to_pylist()}
    users = {row["user_id"]: row
             for row in table_of(examined.outcome.histories, "histories").to_pylist()}
    for row in chosen:
        user = users[row["user_id"]]
        columns = (user[name] for name in ("items", "timestamps_s", "ratings", "labels"))
        events = [PastEvent(item_ids[item], *rest) for item, *rest in
                  zip(*columns, strict=True)]
        yield row["user_id"], events[: lengths[row["slate_id"]]]


def test_lists_hold_no_item_twice_and_the_history_list_only_items_had(
    examined: Examined, lists: list[dict[str, Any]]
) -> None:
    users = {row["user_id"]: set(row["items"])
             for row in table_of(examined.outcome.histories, "histories").to_pylist()}
    assert lists
    for row in lists:
        for name in ("full", "crm", "popular", "history"):
            assert len(set(row[name])) == len(row[name])
            assert 0 not in row[name]
        assert set(row["history"]) <= users[row["user_id"]]


class _Page(HTMLParser):
    """Collects the tags that would load something."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_stands_alone(examined: Examined) -> None:
    page = _Page()
    page.feed(storage.read_bytes(examined.kind("exam_report").path("index.html")).decode())
    assert page.tags.count("img") == 5     # AUC, learning, lengths, reliability, gates
    assert "script" not in page.tags
    assert all(source.startswith("data:") for source in page.sources)


def test_a_release_against_a_copy_of_itself_differs_by_zero(
    examined: Examined, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry(examined.config.run.registry)
    first = examined.outcome.release_id
    folder = registry.folder(first)
    names = [name for name in registry.read_manifest(first).files if name != "config.json"]
    copy = registry.publish("copy", {name: storage.join(folder, name) for name in names},
                            facts_of(folder))
    try:
        options = examined.arguments("--against", "copy", "--json", str(tmp_path / "two.json"))
        assert evaluate.main(options) == 0
    finally:
        shutil.rmtree(copy)
    difference = json.loads((tmp_path / "two.json").read_text())["difference"]
    assert (difference["first"], difference["second"]) == (first, "copy")
    values = [
        interval for table in difference["tables"] for model in table["models"].values()
        for interval in model.values() if interval
    ] + [interval for each in difference["rankings"] for interval in each["metrics"].values()]
    assert len(values) > 50
    assert all(np.allclose(list(each.values()), 0, atol=1e-6) for each in values)
    assert f"{first} minus copy, paired" in capsys.readouterr().out


def facts_of(folder: str) -> dict[str, Any]:
    facts: dict[str, Any] = storage.read_json(storage.join(folder, "manifest.json"))["facts"]
    return {**facts, "config": storage.read_json(storage.join(folder, "config.json"))}


def moment(time_s: int) -> str:
    return str(np.datetime64(time_s, "s"))


@pytest.mark.parametrize(("options", "message"), [
    (["--release", "missing"], "missing"),
    (["--release", "", "--against", "live"], "release id ''"),
    (["--against", ""], "release id ''"),
    (["--start", "yesterday"], "--start: 'yesterday' is no date"),
    (["--start", "2011-08-01", "--end", "2011-07-01"], "ends"),
    (["--start", "2031-01-01", "--end", "2031-02-01"], "no row to examine"),
    (["--llm-rows", "0"], "--llm-rows: 0 is less than 1"),
    (["--actors", "0"], "--actors: 0 is less than 1"),
    (["--serve-config", "nowhere.yaml"], "no Serve config at 'nowhere.yaml'"),
    (["--histories", "nowhere"], "nowhere"),
])
def test_wrong_input_ends_with_exit_code_1_and_a_message(
    examined: Examined, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert evaluate.main(examined.arguments(*options)) == 1
    assert message in capsys.readouterr().err


def test_histories_are_what_is_asked_for(
    examined: Examined, capsys: pytest.CaptureFixture[str]
) -> None:
    options = examined.arguments("--histories", examined.outcome.scores.uri)
    assert evaluate.main(options) == 1
    assert "holds 'scores', not 'histories'" in capsys.readouterr().err


def test_paths_are_the_same_for_driver_and_actors(
    examined: Examined, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = Path(examined.outcome.histories.uri)
    monkeypatch.chdir(uri.parent)
    assert open_artifact(uri.name).uri == str(uri)


def test_a_window_that_the_release_learned_from_is_refused(
    examined: Examined, capsys: pytest.CaptureFixture[str]
) -> None:
    timeline = storage.read_json(examined.outcome.histories.path("timeline.json"))
    options = examined.arguments("--start", moment(timeline["t2_s"] - 1))
    assert evaluate.main(options) == 1
    assert "learned from events up to" in capsys.readouterr().err


def test_a_serve_config_that_is_no_yaml_is_refused(
    examined: Examined, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("applications: [{")
    assert evaluate.main(examined.arguments("--serve-config", str(path))) == 1
    assert "bad.yaml" in capsys.readouterr().err
