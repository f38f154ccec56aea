"""The questions put to releases: which rows, whose sample, what is left out."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine import storage
from engine.artifacts import Artifact
from engine.config import EngineConfig, RolesConfig
from engine.data.roles import Role, Roles
from engine.data.schema import EXAM_SCORES, EXAM_SLATES
from engine.data.slates import Slate
from engine.data.splits import read_timeline
from engine.errors import DataError, ReleaseError
from engine.stages.exam import (
    Examined,
    Period,
    known_rows,
    read_examined,
    read_titles,
    set_exam,
    unseen_period,
)
from engine.stages.exam_report import queries_of, slices_of
from engine.stages.histories import build_histories
from engine.stages.interactions import import_data
from engine.stages.release_scores import Translation, most_often
from engine.types import FeedbackKind, History, Timeline
from tests.generated import write_recbole
from tests.tiny_release import tiny_world


@pytest.fixture(scope="module")
def histories(ray_local: str, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("exam")
    config = config_of(write_recbole(folder / "in"))
    return build_histories(str(folder / "run"), config, import_data(str(folder / "run"), config))


def config_of(path: str, **sections: Any) -> EngineConfig:
    return EngineConfig.model_validate({
        "source": {"path": path, **sections.pop("source", {})},
        "histories": {"num_partitions": 3}, **sections,
    })


def examined(histories: Artifact, name: str = "r1", without: str = "", **source: Any) -> Examined:
    titles = read_titles(histories.path("items.parquet"))
    titles.pop(without, None)
    return Examined(
        name, config_of("in", source=source), read_timeline(histories.path("timeline.json")), titles
    )


def slates_of(exam: Artifact) -> list[dict[str, Any]]:
    tables = [storage.read_table(uri) for uri in exam.files("slates/")]
    assert all(table.schema == EXAM_SLATES for table in tables)
    rows: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist()
    return rows


def events_of(histories: Artifact) -> list[tuple[str, int, int, int]]:
    """Return (user, time, item, label) of every event."""
    users = pa.concat_tables(storage.read_table(uri) for uri in histories.files("histories/"))
    return [
        (user["user_id"], time_s, item, label)
        for user in users.to_pylist()
        for time_s, item, label in zip(
            user["timestamps_s"], user["items"], user["labels"], strict=True
        )
    ]


def test_every_event_of_the_window_is_asked_once_with_its_context(
    histories: Artifact, tmp_path: Path
) -> None:
    release = examined(histories)
    period = unseen_period(histories, [release])
    exam = set_exam(str(tmp_path), histories, [release], period, llm_rows=40)
    events, train_end_s = events_of(histories), release.timeline.t1_s
    slates = slates_of(exam)
    asked = sorted(
        (slate["user_id"], time_s, item, label) for slate in slates for time_s, item, label in
        zip(slate["timestamps_s"], slate["items"], slate["labels"], strict=True)
    )
    assert asked == sorted(event for event in events if event[1] >= period.start_s)
    assert exam.facts["rows"] == len(asked) > 100
    trained = [event for event in events if event[1] < train_end_s]
    for slate in slates:
        before = [time_s for user, time_s, *_ in events
                  if user == slate["user_id"] and time_s < slate["timestamps_s"][0]]
        assert slate["history_length"] == len(before)
        assert slate["idle_s"] == (slate["timestamps_s"][0] - max(before) if before else None)
        assert slate["user_events"] == sum(event[0] == slate["user_id"] for event in trained)
        assert slate["item_events"] == [
            sum(event[2] == item for event in trained) for item in slate["items"]
        ]


def test_a_window_ends_before_its_end_and_the_sample_holds_whole_users(
    histories: Artifact, tmp_path: Path
) -> None:
    release = examined(histories)
    whole = unseen_period(histories, [release])
    period = Period(whole.start_s + 86_400, whole.end_s - 3 * 86_400)
    exam = set_exam(str(tmp_path), histories, [release], period, llm_rows=25)
    slates = slates_of(exam)
    times = [time_s for slate in slates for time_s in slate["timestamps_s"]]
    assert period.start_s <= min(times)
    assert max(times) < period.end_s
    users = storage.read_json(exam.path("sample.json"))["users"]
    sampled = sum(len(slate["items"]) for slate in slates if slate["user_id"] in users)
    assert exam.facts["sampled_rows"] == sampled <= 25
    assert exam.facts["sampled_users"] == len(users) >= 1


def test_a_night_is_judged_on_rows_that_judge_even_of_a_time_it_learned(
    histories: Artifact, tmp_path: Path
) -> None:
    first = examined(histories)
    period = unseen_period(histories, [first])
    roles = Roles(RolesConfig(judge=0.4), period.start_s)
    end = period.end_s
    night = replace(
        first, release_id="night", roles=roles,
        timeline=Timeline(first.timeline.start_s, end, end, end, end),
    )
    with pytest.raises(DataError, match="'night' learned from events"):
        set_exam(str(tmp_path), histories, [night, first], period, llm_rows=40)
    exam = set_exam(str(tmp_path), histories, [night, first], period, llm_rows=40, roles=roles)
    asked = {(slate["user_id"], time_s) for slate in slates_of(exam)
             for time_s in slate["timestamps_s"]}
    expected = {
        (user, time_s) for user, time_s, *_ in events_of(histories)
        if time_s >= period.start_s and roles.of(user, np.array([time_s]))[0] == Role.JUDGE
    }
    assert asked == expected
    assert len(asked) > 30


def test_items_that_a_release_does_not_know_are_left_out_and_counted(
    histories: Artifact, tmp_path: Path
) -> None:
    full = examined(histories)
    period = unseen_period(histories, [full])
    items = storage.read_table(histories.path("items.parquet")).to_pylist()
    asked = [event for event in events_of(histories) if event[1] >= period.start_s]
    missing = asked[0][2]
    item_id = next(row["item_id"] for row in items if row["item"] == missing)
    older = examined(histories, "r0", without=item_id)
    exam = set_exam(str(tmp_path), histories, [full, older], period, llm_rows=40)
    lost = sum(event[2] == missing for event in asked)
    assert exam.facts["unknown_items"] == lost > 0
    assert exam.facts["rows"] == len(asked) - lost
    slates = slates_of(exam)
    assert all(missing not in slate["items"] for slate in slates)
    assert all(len(slate["items"]) == len(slate["labels"]) == len(slate["item_events"])
               for slate in slates)
    liked = [item for slate in slates for item in slate["unknown_liked"]]
    assert liked == [missing] * sum(event[2] == missing and event[3] == 1 for event in asked)
    assert all(slate["items"] or slate["unknown_liked"] for slate in slates)


def test_releases_of_different_labels_are_not_compared(
    histories: Artifact, tmp_path: Path
) -> None:
    other = examined(histories, "strict", label={"threshold": 5})
    releases = [examined(histories), other]
    with pytest.raises(DataError, match=r"'r1' and 'strict' differ in source\.label"):
        set_exam(str(tmp_path), histories, releases, unseen_period(histories, releases), llm_rows=9)


def test_the_window_begins_after_what_the_last_release_learned_from(
    histories: Artifact, tmp_path: Path
) -> None:
    first = examined(histories)
    later_s = first.timeline.t2_s + 86_400
    second = replace(first, release_id="r2", timeline=replace(first.timeline, t2_s=later_s))
    for releases in ([first, second], [second, first]):
        assert unseen_period(histories, releases).start_s == later_s
        early = Period(first.timeline.t2_s, later_s + 86_400)
        with pytest.raises(DataError, match=r"'r2' learned from events up to \d{4}-\d\d-\d\d "):
            set_exam(str(tmp_path), histories, releases, early, llm_rows=9)


def test_histories_that_end_before_a_release_leave_nothing_to_examine(histories: Artifact) -> None:
    release = examined(histories)
    end_s = release.timeline.end_s + 1
    newer = replace(release, timeline=replace(release.timeline, t2_s=end_s))
    assert unseen_period(histories, [release]).end_s == end_s
    with pytest.raises(DataError, match=r"end at .* 'r1' learned .*: nothing is left to examine"):
        unseen_period(histories, [newer])


def test_histories_of_other_labels_or_other_data_are_refused(
    histories: Artifact, tmp_path: Path
) -> None:
    period = unseen_period(histories, [examined(histories)])
    strict = examined(histories, label={"threshold": 5})
    with pytest.raises(DataError, match=r"imported with source\.label .*4.* 'r1' learned .*5"):
        set_exam(str(tmp_path), histories, [strict], period, llm_rows=9)
    release = examined(histories)
    names = list(release.titles)
    few = dict.fromkeys(names[: len(names) // 3], "renamed")
    set_exam(str(tmp_path), histories, [replace(release, titles={**release.titles, **few})],
             period, llm_rows=9)
    other = replace(release, titles=dict.fromkeys(names, "another"))
    with pytest.raises(DataError, match="have another title there: they are of different data"):
        set_exam(str(tmp_path), histories, [other], period, llm_rows=9)


def test_negatives_go_with_the_positive_that_a_release_does_not_know() -> None:
    repeat, new = int(FeedbackKind.REPEAT), int(FeedbackKind.NEW)
    rows = [(1, 1, new), (5, 0, new), (2, 1, new), (6, 0, new), (7, 0, new), (8, 0, new),
            (3, 1, repeat), (4, 0, repeat)]
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    times_s = np.array([0, 5, 5, 0, 5, 0, 9, 9])
    slate = Slate(0, 3, 4, *columns, times_s, np.arange(8))
    is_known_I = np.ones(9, bool)
    assert known_rows(slate, is_known_I).items.tolist() == slate.items.tolist()
    is_known_I[2] = False
    kept = known_rows(slate, is_known_I)
    assert kept.items.tolist() == [1, 6, 8, 3, 4]       # 5 and 7 have the time of 2
    assert kept.timestamps_s.tolist() == [0, 0, 0, 9, 9]
    is_known_I[[1, 3]] = False
    assert known_rows(slate, is_known_I).items.tolist() == []


def test_histories_that_do_not_name_their_label_are_refused(
    histories: Artifact, tmp_path: Path
) -> None:
    release = examined(histories)
    period = unseen_period(histories, [release])
    older = replace(histories, facts={"users": 3})
    with pytest.raises(DataError, match=r"does not name its source\.label"):
        set_exam(str(tmp_path), older, [release], period, llm_rows=9)


def test_a_user_of_unknown_items_alone_is_asked_about_in_lists(
    histories: Artifact, tmp_path: Path
) -> None:
    release = examined(histories)
    period = unseen_period(histories, [release])
    asked = [event for event in events_of(histories) if event[1] >= period.start_s]
    likers = sorted({who for who, *_, label in asked if label == 1})
    user = min(likers, key=lambda liker: sum(event[0] == liker for event in asked))
    ids = storage.read_table(histories.path("items.parquet"))["item_id"].to_pylist()
    theirs = {ids[item - 1] for who, _, item, _ in asked if who == user}
    older = replace(release, release_id="r0", titles={
        item_id: title for item_id, title in release.titles.items() if item_id not in theirs
    })
    exam = set_exam(str(tmp_path), histories, [release, older], period, llm_rows=10_000)
    slates = [slate for slate in slates_of(exam) if slate["user_id"] == user]
    liked = [item for who, _, item, label in asked if who == user and label == 1]
    assert sorted(item for slate in slates for item in slate["unknown_liked"]) == sorted(liked)
    assert all(slate["items"] == [] for slate in slates)


def test_a_rating_of_a_known_item_stays_whatever_else_goes() -> None:
    slate = Slate(0, 3, 0, np.array([1, 2, 3, 4]), np.array([1, 0, 0, 1]),
                  np.full(4, FeedbackKind.EXPLICIT), np.arange(4), np.arange(4))
    kept = known_rows(slate, np.array([False, False, True, True, True]))
    assert kept.items.tolist() == [2, 3, 4]


def test_a_release_that_does_not_say_what_it_learned_from_is_refused(tmp_path: Path) -> None:
    world = tiny_world(tmp_path)
    world.publish("r1")
    with pytest.raises(ReleaseError, match="'r1' does not say what time it learned from"):
        read_examined(world.registry, "r1")


def history(items: list[int]) -> History:
    size = len(items)
    return History(np.array(items, np.int32), np.ones(size, np.float32), np.ones(size, np.int8),
                   np.arange(size, dtype=np.int64))


def test_a_translated_history_skips_items_that_the_release_lacks() -> None:
    release: Any = SimpleNamespace(catalogue=Catalogue({"c": 1, "a": 2}))
    terms = Translation.of(["", "a", "b", "c"], release)
    translated, lengths = terms.history(history([1, 2, 3, 2, 1]))
    assert translated.items.tolist() == [2, 1, 2]
    assert lengths.tolist() == [0, 1, 1, 2, 2, 3]
    assert terms.to_histories_J.tolist() == [0, 3, 1]


class Catalogue(dict[str, int]):
    """A catalogue of two items; position 0 is the unknown one."""

    def __len__(self) -> int:
        return 1 + super().__len__()

    def index_of(self, item_id: str) -> int:
        return self[item_id]


def test_most_often_counts_events_and_breaks_ties_by_the_newest() -> None:
    assert most_often(history([4, 7, 7, 9, 4, 5])).tolist() == [4, 7, 5, 9]
    assert most_often(history([])).tolist() == []
    assert most_often(history([4, 7, 7, 9]), limit=1).tolist() == [7]


def test_slices_of_rows_by_hand() -> None:
    row = {"user_id": "u", "slate_id": "s", "item": 1, "label": 1, "popularity": 0.0,
           "crm_row_logit": 0.0, "crm_logit": 0.0, "llm_logit": None}
    day = 86_400
    table = pa.Table.from_pylist([
        {**row, "kind": 2, "history_length": 0, "user_events": 0, "item_events": 0,
         "idle_s": None, "timestamp_s": 9},
        {**row, "kind": 1, "history_length": 19, "user_events": 3, "item_events": 1,
         "idle_s": 28 * day, "timestamp_s": 10},
        {**row, "kind": 1, "history_length": 500, "user_events": 400, "item_events": 9,
         "idle_s": 28 * day + 1, "timestamp_s": 11},
    ], schema=EXAM_SCORES)
    found = {name: np.flatnonzero(mask).tolist() for name, mask in slices_of(table).items()}
    assert found == {
        "all": [0, 1, 2], "new users": [0], "old users": [1, 2],
        "history under 20": [0, 1], "history 20 to 99": [], "history 100 to 499": [],
        "history 500 and over": [2], "cold items": [0], "warm items": [1, 2],
        "active users": [1], "inactive users": [2],
        "repeat items of the user": [1, 2], "new items of the user": [0],
    }
    newest = {name: np.flatnonzero(mask).tolist() for name, mask in slices_of(table, 10).items()}
    assert newest == {**found, "the newest day": [1, 2], "the days before it": [0]}


def test_queries_of_a_kind_look_for_its_items_alone() -> None:
    repeat, new = int(FeedbackKind.REPEAT), int(FeedbackKind.NEW)
    table = pa.table({
        "user_id": ["u", "v"], "slate_id": ["a", "b"], "history_length": [3, 30],
        "user_events": [0, 30], "idle_s": [5, None], "liked": [[3, 4], [5]],
        "kinds": [[repeat, new], [new]], "full": [[4, 3], [9, 5]], "crm": [[3], [5]],
        "popular": [[1], [2]], "history": pa.array([[], []], pa.list_(pa.int32())),
    })
    found = queries_of(table)
    slices = ("new users", "old users", "history under 20", "history 20 to 99", "active users",
              "inactive users")
    assert set(found) == {
        (*group, name) for name in ("full", "crm", "popular") for group in (
            *((kind, "all") for kind in ("all", "repeat", "new")),
            *(("all", part) for part in slices),
        )
    }
    assert found["all", "all", "full"].is_hit_QK[:, :2].tolist() == [[True, True], [False, True]]
    assert found["repeat", "all", "full"].is_hit_QK[:, :2].tolist() == [[False, True]]
    assert found["new", "all", "full"].relevant_Q.tolist() == [1, 1]
    assert found["all", "new users", "full"].relevant_Q.tolist() == [2]
    assert found["all", "inactive users", "full"].relevant_Q.tolist() == [1]
