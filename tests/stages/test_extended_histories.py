"""Nights of events upon a base: what readers see, what is written, who is gone."""

import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import storage
from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.data.deletions import Deletions
from engine.data.histories import build_histories
from engine.data.layers import DELETED_FILE, LAYERS_FILE, layer_names, read_histories
from engine.data.schema import INTERACTIONS, histories_of, part_name
from engine.data.splits import read_timeline
from engine.errors import ArtifactError, ConfigError, DataError
from engine.stages import extended_histories
from engine.stages import histories as whole_histories
from engine.stages.extended_histories import extend_histories
from engine.stages.interactions import import_data
from engine.stages.popularity import count_popularity
from engine.stages.slates import build_slates
from engine.types import Timeline
from tests.generated import write_recbole
from tests.night_world import (
    Event,
    base_of,
    day_from,
    day_of,
    events_by_user,
    night_config,
    read_items,
    table_of,
    written_users,
)

NOBODY = Deletions.of({})
BASE: list[Event] = [("a", "1", 10), ("a", "3", 20), ("b", "1", 15), ("c", "3", 30)]


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the tasks of partitions in this process."""
    monkeypatch.setattr(extended_histories, "map_partitions", _map_inline)


def _map_inline(function: Callable[[int], Any], partitions: Sequence[int]) -> list[Any]:
    return [function(number) for number in partitions]


def _night(
    run: Path | str, parent: Artifact, events: Sequence[Event], end_s: int, *,
    deleted: Deletions = NOBODY, keep_layers: int = 7, **entities: Any,
) -> Artifact:
    return extend_histories(
        str(run), night_config(keep_layers), parent, day_of(str(run), events, **entities),
        end_s=end_s, deleted=deleted,
    )


def _base(run: Path | str, events: Sequence[Event] = BASE, **entities: Any) -> Artifact:
    return base_of(str(run), day_of(str(run), events, **entities), 40)


def _plain(histories: Artifact) -> dict[str, list[tuple[str, int]]]:
    return {
        user: [(item, time_s) for item, time_s, _, _ in events]
        for user, events in events_by_user(histories).items()
    }


@pytest.mark.usefixtures("inline")
def test_a_night_holds_the_users_who_changed_and_readers_see_all(tmp_path: Path) -> None:
    base = _base(tmp_path)
    night = _night(tmp_path, base, [("a", "2", 50), ("a", "3", 20), ("d", "1", 12)], 60)
    assert _plain(night) == {
        "a": [("1", 10), ("3", 20), ("2", 50)], "b": [("1", 15)], "c": [("3", 30)],
        "d": [("1", 12)],
    }
    assert written_users(night) == {"a", "d"}
    assert storage.read_json(night.path(LAYERS_FILE)) == [f"histories-{base.key}"]
    assert read_items(night) == ["1", "3", "2"]         # known items keep their index
    assert read_timeline(night.path("timeline.json")) == Timeline(0, 60, 60, 60, 50)
    assert night.facts == {
        "users": 2, "new_users": 1, "events": 2, "duplicates": 1, "late_events": 1,
        "future_events": 0, "deleted_events": 0, "new_items": 1, "longest": 3,
        "label": night_config().source.label.settings(), "layers": 1,
    }
    assert _plain(base) == _plain(_base(tmp_path))


@pytest.mark.usefixtures("inline")
def test_who_has_only_known_events_is_not_written(tmp_path: Path) -> None:
    night = _night(tmp_path, _base(tmp_path), [("a", "1", 10), ("b", "3", 45)], 60)
    assert written_users(night) == {"b"}
    assert (night.facts["events"], night.facts["duplicates"]) == (1, 1)


@pytest.mark.usefixtures("inline")
def test_events_from_the_end_on_wait_and_those_of_1970_come_first(tmp_path: Path) -> None:
    base = _base(tmp_path)
    night = _night(tmp_path, base, [("a", "2", 0), ("a", "2", 60), ("b", "2", 4_000_000_000)], 60)
    assert _plain(night)["a"] == [("2", 0), ("1", 10), ("3", 20)]
    assert (night.facts["future_events"], night.facts["late_events"]) == (2, 1)
    assert read_timeline(night.path("timeline.json")) == Timeline(0, 60, 60, 60, 39)
    next_night = _night(tmp_path, night, [("a", "2", 60)], 70)
    assert _plain(next_night)["a"][-1] == ("2", 60)


@pytest.mark.usefixtures("inline")
def test_a_day_without_events_changes_nothing(tmp_path: Path) -> None:
    base = _base(tmp_path, titles={"1": "One"})
    first = _night(tmp_path, base, [("b", "2", 50)], 60)
    empty = _night(tmp_path, first, [], 70)
    assert empty.key != first.key
    assert events_by_user(empty) == events_by_user(first)
    assert written_users(empty) == set()
    assert len(empty.files("histories/")) == len(base.files("histories/"))
    for name in ("items.parquet", "users.parquet"):
        assert storage.read_table(empty.path(name)) == storage.read_table(first.path(name))


@pytest.mark.usefixtures("inline")
def test_a_night_that_is_started_again_is_reused(tmp_path: Path) -> None:
    base, events = _base(tmp_path), [("a", "2", 50)]
    first = _night(tmp_path, base, events, 60)
    assert _night(tmp_path, base, events, 60) == first
    others = [
        _night(tmp_path, base, events, 61), _night(tmp_path, base, events, 60, keep_layers=3),
        _night(tmp_path, base, events, 60, deleted=Deletions.of({"a": 5})),
        _night(tmp_path, base, [*events, ("b", "2", 51)], 60), _night(tmp_path, first, events, 60),
    ]
    assert len({first.key, *(each.key for each in others)}) == 6


@pytest.mark.usefixtures("inline")
def test_a_deleted_user_is_masked_at_once_and_later_gone_from_the_files(tmp_path: Path) -> None:
    gone = Deletions.of({"a": 15, "c": 99})
    base = _base(tmp_path, jobs={"a": "nurse", "b": "cook"})
    first = _night(tmp_path, base, [("b", "2", 50)], 60, keep_layers=2)
    masked = _night(
        tmp_path, first, [("a", "1", 12), ("b", "1", 61)], 70, deleted=gone, keep_layers=2
    )
    assert _plain(masked) == {"a": [("3", 20)], "b": [("1", 15), ("2", 50), ("1", 61)]}
    assert storage.read_table(masked.path("users.parquet"))["user_id"].to_pylist() == ["b"]
    assert masked.facts["deleted_events"] == 1
    columns = pa.concat_tables(
        read_histories(masked.uri, number, pa.array(["a", "c"]), ["items"]) for number in (0, 1)
    )
    assert columns.to_pylist() == [{"items": [2]}]
    kept = _night(tmp_path, masked, [], 80, keep_layers=2)      # nobody tells it again
    assert layer_names(kept.uri) == []
    assert not storage.exists(kept.path(DELETED_FILE))
    assert _plain(kept) == _plain(masked)
    [a] = [
        row for uri in kept.files("histories/") for row in storage.read_table(uri).to_pylist()
        if row["user_id"] != "b"
    ]
    assert (a["user_id"], a["timestamps_s"]) == ("a", [20])


def _masked(histories: Artifact) -> list[str]:
    users: list[str] = storage.read_table(histories.path(DELETED_FILE))["user_id"].to_pylist()
    return users


@pytest.mark.usefixtures("inline")
def test_who_is_not_in_the_files_below_is_not_named(tmp_path: Path) -> None:
    gone = {"a": 99}
    first = _night(tmp_path, _base(tmp_path), [], 60, deleted=Deletions.of(gone), keep_layers=1)
    assert _masked(first) == ["a"]
    base = _night(tmp_path, first, [], 70, deleted=Deletions.of(gone), keep_layers=1)
    assert layer_names(base.uri) == []

    def night(parent: Artifact, end_s: int, deleted: dict[str, int]) -> Artifact:
        return _night(tmp_path, parent, [], end_s, deleted=Deletions.of(deleted), keep_layers=3)

    clear = night(base, 80, gone)
    assert _masked(clear) == []
    assert _masked(night(clear, 90, gone | {"b": 100})) == ["b"]
    assert _masked(night(clear, 90, gone | {"b": 90})) == ["a", "b"]    # when was not b told of?
    assert _masked(night(clear, 90, {"a": 200})) == ["a"]               # deleted again


@pytest.mark.usefixtures("inline")
def test_who_was_not_told_of_at_one_night_is_masked_at_the_next(tmp_path: Path) -> None:
    gone = Deletions.of({"a": 99})
    first = _night(tmp_path, _base(tmp_path), [], 60, deleted=gone, keep_layers=1)
    base = _night(tmp_path, first, [], 70, deleted=gone, keep_layers=1)
    untold = _night(tmp_path, base, [("a", "1", 10)], 80)       # an old event comes once more
    assert "a" in _plain(untold)
    told = _night(tmp_path, untold, [], 90, deleted=gone)
    assert _masked(told) == ["a"]
    assert "a" not in _plain(told)


@pytest.mark.usefixtures("inline")
def test_a_deleted_user_who_comes_back_has_the_new_events_alone(tmp_path: Path) -> None:
    night = _night(
        tmp_path, _base(tmp_path), [("a", "1", 50)], 60, deleted=Deletions.of({"a": 20})
    )
    assert _plain(night)["a"] == [("1", 50)]
    [uri] = [uri for uri in night.files("histories/") if len(storage.read_table(uri))]
    assert storage.read_table(uri)["timestamps_s"].to_pylist() == [[50]]


@pytest.mark.usefixtures("inline")
def test_texts_and_profiles_follow_the_newer_source(tmp_path: Path) -> None:
    base = _base(
        tmp_path, titles={"1": "One", "3": "Three"}, genres={"1": ["Drama"]},
        jobs={"a": "nurse", "b": "cook"},
    )
    night = _night(
        tmp_path, base, [("a", "1", 50), ("a", "0", 51)], 60,
        titles={"3": "The third"}, genres={"3": ["Comedy"]}, jobs={"b": "driver", "z": "clerk"},
    )
    assert storage.read_table(night.path("items.parquet")).to_pylist() == [
        {"item": 1, "item_id": "1", "title": "One", "genres": ["Drama"]},   # the day says nothing
        {"item": 2, "item_id": "3", "title": "The third", "genres": ["Comedy"]},
        {"item": 3, "item_id": "0", "title": "0", "genres": []},
    ]
    assert storage.read_table(night.path("users.parquet")).to_pylist() == [
        {"user_id": "a", "job": ["nurse"]}, {"user_id": "b", "job": ["driver"]},
        {"user_id": "z", "job": ["clerk"]},
    ]


@pytest.mark.usefixtures("inline")
def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    base, run = _base(tmp_path), str(tmp_path)
    night = _night(tmp_path, base, [("a", "2", 50)], 60)
    with pytest.raises(DataError, match="ends at 59 s"):
        _night(tmp_path, night, [], 59)
    with pytest.raises(ConfigError, match="num_partitions: the day was imported with 3"):
        _night(tmp_path, base, BASE, 60, partitions=3)
    with pytest.raises(ArtifactError, match="not in"):
        _night(tmp_path / "other", base, BASE, 60)
    for source, match in (
        ({"item_fields": [], "user_fields": ["job"]}, "item_fields"),
        ({"item_fields": ["genres"], "user_fields": []}, "user_fields"),
        ({"label": {"kind": "implicit"}}, "source.label"),
    ):
        config = night_config(source=source)
        with pytest.raises(ConfigError, match=match):
            extend_histories(run, config, base, day_of(run, BASE), end_s=60, deleted=NOBODY)
    storage.delete_folder(base.uri)
    with pytest.raises(ArtifactError, match="no manifest"):
        _night(tmp_path, night, [], 70)


@pytest.mark.usefixtures("inline")
def test_a_user_with_hundreds_of_thousands_of_events_has_one_more(tmp_path: Path) -> None:
    count = 200_000
    times = np.arange(count)
    base = base_of(str(tmp_path), day_from(str(tmp_path), _events_of_one(times)), count)
    day = day_from(str(tmp_path), _events_of_one(np.arange(count // 2, count + 5)[::-1]))
    start_s = time.monotonic()
    night = extend_histories(
        str(tmp_path), night_config(), base, day, end_s=2 * count, deleted=NOBODY
    )
    assert time.monotonic() - start_s < 60              # about 1 s, alone on a core
    assert (night.facts["duplicates"], night.facts["longest"]) == (count // 2, count + 5)
    [found] = pa.concat_tables(
        read_histories(night.uri, number, columns=["timestamps_s"]) for number in (0, 1)
    )["timestamps_s"].to_numpy()
    assert (found == np.arange(count + 5)).all()


def _events_of_one(times: npt.NDArray[np.int64]) -> pa.Table:
    return pa.table({
        "user_id": ["a"] * len(times), "item_id": [f"{time_s % 50}" for time_s in times],
        "timestamp_s": times, "rating": np.ones(len(times), np.float32),
        "label": np.ones(len(times), np.int8),
    }, schema=INTERACTIONS)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "d", "e"]), st.sampled_from(["10", "2", "3", "04"]),
        st.integers(0, 60),
    ), max_size=12,
)
NIGHTS = st.lists(
    st.tuples(
        EVENTS, st.integers(0, 20), st.dictionaries(st.sampled_from("abc"), st.integers(0, 60)),
    ), max_size=3,
)


def _remaining(events: set[Event], deleted: dict[str, int]) -> set[Event]:
    return {each for each in events if each[2] > deleted.get(each[0], -1)}


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=EVENTS, nights=NIGHTS, keep_layers=st.integers(1, 3))
def test_nights_give_what_all_events_at_once_give(
    inline: None, first: list[Event], nights: list[tuple[list[Event], int, dict[str, int]]],
    keep_layers: int,
) -> None:
    with tempfile.TemporaryDirectory() as run:
        known, deleted, end_s = set(first), dict[str, int](), 4
        layered = compacted = _base(run, sorted(known))
        for events, seconds, gone in nights:
            end_s += seconds
            deleted |= {user: max(time_s, deleted.get(user, 0)) for user, time_s in gone.items()}
            before = _remaining(known, deleted)
            known = before | {each for each in _remaining({*events}, deleted) if each[2] < end_s}
            before_ids = read_items(layered)
            layered, compacted = (
                _night(run, parent, sorted({*events}), end_s, deleted=Deletions.of(deleted),
                       keep_layers=layers)
                for parent, layers in ((layered, 9), (compacted, keep_layers))
            )
            assert events_by_user(layered) == events_by_user(compacted) == _at_once(known)
            assert written_users(layered) == {user for user, _, _ in known - before}
            assert read_items(layered)[: len(before_ids)] == before_ids
            assert len(layer_names(compacted.uri)) <= keep_layers
            if not layer_names(compacted.uri):
                assert written_users(compacted) == {user for user, _, _ in known}


def _at_once(events: set[Event]) -> dict[str, list[tuple[str, int, float, int]]]:
    item_ids = sorted({item for _, item, _ in events})
    table = build_histories(table_of(events), pa.array(item_ids, pa.string()))
    return {
        user: [
            (item_ids[item - 1], time_s, rating, label) for item, time_s, rating, label in zip(
                each.items.tolist(), each.timestamps_s.tolist(), each.ratings.tolist(),
                each.labels.tolist(), strict=True,
            )
        ] for user, each in histories_of(table).items()
    }


def test_imported_days_on_ray_are_as_one_import(ray_local: str, tmp_path: Path) -> None:
    path = write_recbole(tmp_path / "in")
    lines = (Path(path) / "small.inter").read_text().splitlines()
    rows = sorted(lines[1:], key=lambda line: int(line.rpartition("\t")[2]))
    cuts = [0, 900, 1000, 1100, 1200]
    run, parts = str(tmp_path / "run"), []
    for number, (start, end) in enumerate(pairwise(cuts)):
        folder = tmp_path / f"day-{number}"
        write_recbole(folder)
        (folder / "small.inter").write_text("\n".join([lines[0], *rows[start:end]]) + "\n")
        parts.append((_config(str(folder)), int(rows[end - 1].rpartition("\t")[2]) + 1))
    config, _ = parts[0]
    made = whole_histories.build_histories(run, config, import_data(run, config))
    for config, end_s in parts[1:]:
        parent, day = made, import_data(run, config)
        made = extend_histories(run, config, parent, day, end_s=end_s, deleted=NOBODY)
    assert made.facts["layers"] == 3
    config = _config(path)
    at_once = whole_histories.build_histories(run, config, import_data(run, config))
    for number in range(3):
        name = part_name("histories", number)
        assert read_histories(made.uri, number) == storage.read_table(at_once.path(name))
        assert read_histories(at_once.uri, number) == storage.read_table(at_once.path(name))
    config = _config(str(tmp_path / "day-3"), keep_layers=2)
    compacted = extend_histories(run, config, parent, day, end_s=end_s, deleted=NOBODY)
    assert compacted.facts["layers"] == 0
    for stage in (build_slates, count_popularity):      # readers of either see the same
        one, two = (stage(run, config, each) for each in (made, compacted))
        assert one.key != two.key
        assert one.manifest()["files"] == two.manifest()["files"]


def _config(path: str, keep_layers: int = 7) -> EngineConfig:
    return EngineConfig.model_validate({
        "source": {"path": path}, "histories": {"num_partitions": 3},
        "night": {"keep_layers": keep_layers},
    })
