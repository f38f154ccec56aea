"""A release sits an exam on ratings: lists without seen items, slates without a prompt."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.config import ServingConfig
from engine.data.schema import part_name, users_schema
from engine.data.splits import write_timeline
from engine.errors import DataError, PromptError
from engine.recommender.candidates import Filters
from engine.stages import release_scores
from engine.stages.exam import Examined, read_titles, set_exam, unseen_period
from engine.stages.recommendations import Ask, recommend_batch
from engine.stages.release_scores import Sitting, sit_exam
from engine.state.database import open_database
from engine.state.histories import PastEvent, seed
from engine.types import Timeline
from tests.tiny_release import SMALL_CRM, TinyWorld, tiny_world

RANKING = {"max_candidates": 12, "llm_candidates": 4, "max_k": 12, "max_history": 15}
"""Fewer events than a user has: what is older is seen all the same."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    """Return users with more events than the CRM reads, and a release `r1`."""
    found = tiny_world(tmp_path_factory.mktemp("world"), users=5, items=150, events=300)
    assert all(len(each) > SMALL_CRM.max_history for each in found.histories.values())
    found.publish("r1")
    return found


@pytest.fixture(scope="module")
def histories(world: TinyWorld) -> Artifact:
    """Return the world's histories as the stage writes them."""
    def write(uri: str) -> dict[str, Any]:
        storage.write_table(storage.join(uri, "items.parquet"), world.catalogue.to_table())
        storage.write_table(
            storage.join(uri, "users.parquet"), users_schema(()).empty_table()
        )
        storage.write_table(storage.join(uri, part_name("histories", 0)), world.histories_table)
        write_timeline(storage.join(uri, "timeline.json"), timeline_of(world))
        return {"label": world.source.label.settings()}

    return artifacts.make(str(world.root / "run"), "histories", {}, [], write)


def timeline_of(world: TinyWorld) -> Timeline:
    """Return cuts that leave the last quarter of the time for the exam."""
    times = sorted(t for each in world.histories.values() for t in each.timestamps_s.tolist())
    start_s, end_s = times[0], times[-1]
    t0_s, t1_s, t2_s = (start_s + (end_s - start_s) * part // 8 for part in (3, 5, 6))
    return Timeline(start_s, t0_s, t1_s, t2_s, end_s)


@pytest.fixture(scope="module")
def exam(world: TinyWorld, histories: Artifact, ray_local: str) -> Artifact:
    """Return an exam about all items but one, which an older release lacks."""
    titles = read_titles(histories.path("items.parquet"))
    newest = Examined("r1", world.config(), timeline_of(world), titles)
    older = replace(newest, titles={
        item_id: title for item_id, title in titles.items() if item_id != missing_id(world)
    })
    period = unseen_period(histories, [newest, older])
    return set_exam(str(world.root / "out"), histories, [newest, older], period, llm_rows=10_000)


def missing_id(world: TinyWorld) -> str:
    """Return the id of an item that somebody, who had not had it, liked in the period."""
    start_s = timeline_of(world).t2_s
    return next(
        world.catalogue.item_ids[item]
        for user in world.histories.values()
        for place, (item, label, time_s) in enumerate(zip(
            user.items.tolist(), user.labels.tolist(), user.timestamps_s.tolist(), strict=True
        ))
        if time_s >= start_s and label == 1 and item not in user.items[:place]
    )


def sitting_of(world: TinyWorld, **serving: Any) -> Sitting:
    config = ServingConfig.model_validate({
        "device": "cpu", "threads": 1, "ranking": RANKING, **serving,
    })
    return Sitting(world.registry_root, "r1", config, exclude_seen=True)


def rows(artifact: Artifact, folder: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pa.concat_tables(
        storage.read_table(uri) for uri in artifact.files(f"{folder}/")
    ).to_pylist()
    return found


@pytest.fixture(scope="module")
def scores(world: TinyWorld, exam: Artifact, histories: Artifact) -> Artifact:
    return sit_exam(str(world.root / "out"), exam, histories, sitting_of(world))


def test_the_time_that_the_cpus_answered_is_counted(scores: Artifact) -> None:
    assert 0 < scores.facts["cpu_s"] < 600


def test_no_list_holds_what_was_seen_and_nothing_seen_is_looked_for(
    world: TinyWorld, exam: Artifact, scores: Artifact
) -> None:
    lengths = {row["slate_id"]: row["history_length"] for row in rows(exam, "slates")}
    lists = rows(scores, "lists")
    assert len(lists) > 3
    for row in lists:
        whole = world.histories[row["user_id"]]
        seen = set(whole.items[: lengths[row["slate_id"]]].tolist())
        assert len(seen) > RANKING["max_history"]
        assert row["liked"]
        for name in ("full", "crm", "popular", "liked"):
            assert not seen & set(row[name]), name
        assert len(row["full"]) == RANKING["max_candidates"]
        assert row["history"] == []


def test_lists_of_ratings_are_what_is_recommended_at_that_moment(
    world: TinyWorld, exam: Artifact, scores: Artifact, tmp_path: Path
) -> None:
    lengths = {row["slate_id"]: row["history_length"] for row in rows(exam, "slates")}
    ids = world.catalogue.item_ids
    chosen = list({row["user_id"]: row for row in rows(scores, "lists")}.values())
    serving = sitting_of(world, database_url=f"sqlite:///{tmp_path}/state.db").serving
    database = open_database(serving.database_url)
    seed(database, [
        (row["user_id"], [
            PastEvent(ids[item], *rest) for item, *rest in zip(*(
                column[: lengths[row["slate_id"]]].tolist()
                for column in (whole.items, whole.timestamps_s, whole.ratings, whole.labels)
            ), strict=True)
        ])
        for row in chosen if (whole := world.histories[row["user_id"]])
    ])
    release = world.load("r1")
    ask = Ask(world.registry_root, "r1", serving, 12, Filters(exclude_seen=True))
    rankings = recommend_batch(release, database, ask, [row["user_id"] for row in chosen])
    for row, ranking in zip(chosen, rankings, strict=True):
        assert [ids[item] for item in row["full"]] == [item.item_id for item in ranking.items]
    database.dispose()


def test_a_liked_item_that_a_release_lacks_is_looked_for_in_lists_and_has_no_row(
    world: TinyWorld, exam: Artifact, scores: Artifact
) -> None:
    missing = world.catalogue.index_of(missing_id(world))
    assert exam.facts["unknown_items"] > 0
    assert any(missing in row["liked"] for row in rows(scores, "lists"))
    assert all(row["item"] != missing for row in rows(scores, "scores"))


def test_a_slate_without_a_prompt_that_fits_is_answered_by_the_crm(
    world: TinyWorld, exam: Artifact, histories: Artifact, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [first, *_] = [row["slate_id"] for row in rows(exam, "slates") if row["items"]]
    read, asked = release_scores.read_prompts, []

    def fussy(*arguments: Any) -> Any:
        asked.append(arguments)
        if len(asked) == 1:
            raise PromptError("the prompt is longer than max_tokens")
        return read(*arguments)

    monkeypatch.setattr(release_scores, "read_prompts", fussy)
    examinee = release_scores._Examinee(sitting_of(world), exam, histories, str(tmp_path))
    users = list(examinee({"part": 0}))
    assert sum(user["unread_slates"] for user in users) == 1
    table = storage.read_table(str(tmp_path / part_name("scores", 0))).to_pylist()
    unread = {row["slate_id"] for row in table if row["llm_logit"] is None}
    assert unread == {first}
    assert all(row["crm_logit"] is not None for row in table)
    assert first not in {slate["slate_id"] for user in users for slate in user["slates"]}


def test_a_sample_without_any_prompt_that_fits_is_an_error_that_says_so(
    world: TinyWorld, exam: Artifact, histories: Artifact, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unread = {"user_id": "u", "rows": 4, "lists": 0, "modes": [], "slates": [], "unread_slates": 2,
              "cpu_s": 0.1}
    monkeypatch.setattr(release_scores, "map_with_actors", lambda *_, **__: iter([unread]))
    with pytest.raises(DataError, match=r"no prompt fits in prompt\.max_tokens in any of the 2"):
        sit_exam(str(tmp_path), exam, histories, sitting_of(world))


def test_answers_in_another_type_of_weights_are_others(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release_scores, "takes_gpu", lambda device: device == "auto")
    monkeypatch.setattr(release_scores, "worker_dtype", lambda base, use_gpu: str(use_gpu))
    assert sitting_of(world, device="auto").settings() != sitting_of(world).settings()
