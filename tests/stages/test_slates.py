from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine import storage
from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.data.schema import SLATES, histories_of
from engine.data.splits import read_timeline
from engine.stages.histories import build_histories
from engine.stages.interactions import import_data
from engine.stages.slates import build_slates
from engine.types import FeedbackKind
from tests.generated import write_online_retail, write_recbole

pytestmark = pytest.mark.usefixtures("ray_local")


def _explicit(path: str, partitions: int = 3) -> EngineConfig:
    return EngineConfig.model_validate({
        "source": {"path": path}, "histories": {"num_partitions": partitions},
    })


def _implicit(path: str, partitions: int = 3, **sections: Any) -> EngineConfig:
    return EngineConfig.model_validate({
        "source": {
            "path": path, "format": "csv", "label": {"kind": "implicit"}, "item_fields": [],
            "user_fields": [],
        },
        "histories": {"num_partitions": partitions},
        "prompt": {"history_fields": [], "candidate_fields": []}, **sections,
    })


def _build(run: Path, config: EngineConfig) -> tuple[Artifact, Artifact]:
    histories = build_histories(str(run), config, import_data(str(run), config))
    return histories, build_slates(str(run), config, histories)


def _rows(artifact: Artifact) -> list[dict[str, Any]]:
    tables = [storage.read_table(uri) for uri in artifact.files("slates/")]
    rows: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist()
    return sorted(rows, key=lambda row: row["slate_id"])


def test_partition_k_of_slates_holds_the_users_of_partition_k_of_histories(tmp_path: Path) -> None:
    histories, slates = _build(tmp_path / "run", _explicit(write_recbole(tmp_path / "in")))
    pairs = list(zip(histories.files("histories/"), slates.files("slates/"), strict=True))
    assert len(pairs) == 3
    for history_uri, slate_uri in pairs:
        table = storage.read_table(slate_uri)
        assert table.schema == SLATES
        users = storage.read_table(history_uri)["user_id"].to_pylist()
        assert set(table["user_id"].to_pylist()) == set(users)


def test_slates_of_ratings_cover_every_event_once_and_see_no_future(tmp_path: Path) -> None:
    histories, slates = _build(tmp_path / "run", _explicit(write_recbole(tmp_path / "in")))
    timeline = read_timeline(histories.path("timeline.json"))
    by_user = histories_of(
        pa.concat_tables(storage.read_table(uri) for uri in histories.files("histories/"))
    )
    found: dict[str, list[tuple[int, int]]] = {user: [] for user in by_user}
    for row in _rows(slates):
        history = by_user[row["user_id"]]
        first = int(row["slate_id"].rpartition(":")[2])
        assert history.timestamps_s[first] == row["timestamps_s"][0]
        assert (history.timestamps_s[: row["history_length"]] < row["timestamps_s"][0]).all()
        assert set(timeline.window_of(np.array(row["timestamps_s"])).tolist()) == {row["window"]}
        found[row["user_id"]].extend(zip(row["timestamps_s"], row["items"], strict=True))
    for user, history in by_user.items():
        events = zip(history.timestamps_s.tolist(), history.items.tolist(), strict=True)
        assert sorted(found[user]) == list(events)
    windows = ("crm", "bank", "validation", "test")
    assert sum(slates.facts[f"{window}/explicit/rows"] for window in windows) == 1200


def test_drawn_negatives_do_not_depend_on_the_partitions(tmp_path: Path) -> None:
    path = write_online_retail(tmp_path / "in")
    slates = [_build(tmp_path / "run", _implicit(path, count))[1] for count in (2, 7)]
    assert _rows(slates[0]) == _rows(slates[1])
    assert slates[0].facts == slates[1].facts


def test_both_kinds_are_there_and_had_it_before_tells_nothing(tmp_path: Path) -> None:
    histories, slates = _build(tmp_path / "run", _implicit(write_online_retail(tmp_path / "in")))
    by_user = histories_of(
        pa.concat_tables(storage.read_table(uri) for uri in histories.files("histories/"))
    )
    positives = {FeedbackKind.REPEAT: 0, FeedbackKind.NEW: 0}
    for row in _rows(slates):
        had = set(by_user[row["user_id"]].items[: row["history_length"]].tolist())
        for item, label, kind in zip(row["items"], row["labels"], row["kinds"], strict=True):
            assert (item in had) == (kind == FeedbackKind.REPEAT)
            positives[FeedbackKind(kind)] += label
    assert min(positives.values()) > 100
    events = sum(len(history) for history in by_user.values())
    assert sum(positives.values()) + slates.facts["dropped_positives"] == events


def test_another_seed_draws_others_and_the_same_seed_the_same(tmp_path: Path) -> None:
    path = write_online_retail(tmp_path / "in")
    one = _build(tmp_path / "one", _implicit(path))[1]
    same = _build(tmp_path / "two", _implicit(path))[1]
    other = _build(tmp_path / "one", _implicit(path, run={"seed": 18}))[1]
    assert same.manifest()["files"] == one.manifest()["files"]
    assert other.key != one.key
    assert _rows(other) != _rows(one)
