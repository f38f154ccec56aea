"""What a service has collected comes back as it was through the next import."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import Engine

from engine import storage
from engine.artifacts import Artifact, open_artifact
from engine.config import ColumnsConfig, EngineConfig, LabelConfig, SourceConfig
from engine.errors import ChecksumError, ConfigError, DataError
from engine.stages.collected import collect, collect_day, source_of
from engine.state.database import open_database
from engine.state.deletions import delete_user
from engine.state.events import Event, append
from engine.state.items import SentItem, put_items
from engine.state.profiles import put_profiles
from jobs import collect as job
from tests.tiny_release import TinyWorld, tiny_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    world = tiny_world(tmp_path_factory.mktemp("collected"))
    world.publish("r1")
    world.registry.promote("r1")
    return world


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/state.db"


@pytest.fixture
def database(world: TinyWorld, url: str) -> Any:
    """The histories, as a service is seeded with them."""
    engine = open_database(url)
    world.seed(engine)
    yield engine
    engine.dispose()


def rows_of(artifact: Artifact, name: str) -> list[dict[str, Any]]:
    return [row for uri in artifact.files(name) for row in storage.read_table(uri).to_pylist()]


def test_every_event_is_there_by_user_and_time(
    world: TinyWorld, database: Engine, url: str, tmp_path: Path
) -> None:
    append(database, [Event("e1", "new", "1", 1_000, 2.0, 0)])
    artifact = collect(str(tmp_path / "out"), world.registry, "r1", url, part_rows=100)
    artifact.verify()
    assert len(artifact.files("interactions/")) == 3        # 241 events
    found = rows_of(artifact, "interactions/")
    expected = [
        {"user_id": user_id, "item_id": world.catalogue.item_ids[item], "timestamp": time_s,
         "label": label, "rating": rating}
        for user_id, history in sorted(world.histories.items())
        for item, time_s, label, rating in zip(
            history.items.tolist(), history.timestamps_s.tolist(), history.labels.tolist(),
            history.ratings.tolist(), strict=True,
        )
    ]
    expected.append({"user_id": "new", "item_id": "1", "timestamp": 1_000, "label": 0,
                     "rating": 2.0})
    assert sorted(found, key=str) == sorted(expected, key=str)
    order = [(row["user_id"].encode(), row["timestamp"]) for row in found]
    assert order == sorted(order)
    assert artifact.facts == {
        "events": 241, "changed_ratings": 0, "items": 40, "items_without_text": 0, "users": 12,
    }


@pytest.mark.parametrize(("kind", "rating", "label", "expected"), [
    ("threshold", 5.0, 1, 5.0), ("threshold", 5.0, 0, 1.0), ("threshold", 2.0, 1, 4.0),
    ("threshold", None, 1, 4.0), ("threshold", None, 0, 1.0),
    ("column", 5.0, 0, 5.0), ("column", None, 1, 3.0), ("implicit", 4.0, 1, None),
])
def test_a_rating_makes_the_label_that_the_event_has(
    world: TinyWorld, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    kind: Any, rating: float | None, label: int, expected: float | None,
) -> None:
    source = SourceConfig(
        format="parquet", label=LabelConfig(kind=kind),
        columns=ColumnsConfig(rating="rating", label="label" if kind == "column" else None),
    )
    read = world.registry.read_config("r1")
    monkeypatch.setattr(
        type(world.registry), "read_config", lambda *_: read.model_copy(update={"source": source})
    )
    database = open_database(url)
    append(database, [Event("e1", "ann", "1", 1_000, rating, label)])
    artifact = collect(str(tmp_path / "out"), world.registry, "r1", url)
    [row] = rows_of(artifact, "interactions/")
    assert row.get("rating") == expected
    is_changed = None not in (rating, expected) and rating != expected
    assert artifact.facts["changed_ratings"] == is_changed
    assert row["label"] == label
    columns = source_of(source, artifact.uri).columns
    assert columns.rating == (None if kind == "implicit" else "rating")
    assert columns.label == ("label" if kind == "column" else None)
    database.dispose()


def test_items_and_profiles_are_as_they_are_now(
    world: TinyWorld, database: Engine, url: str, tmp_path: Path
) -> None:
    ids = world.catalogue.item_ids
    put_items(database, [
        SentItem("zz", "Zeppelin", {"genres": ("Drama", "War")}), SentItem(ids[1], "Renamed"),
        SentItem(ids[2], is_withdrawn=True), SentItem("never", is_withdrawn=True),
    ])
    append(database, [Event("e1", "ann", "challenger's", 5, None, 1)])
    users = sorted(world.histories)
    put_profiles(database, {"new": {"gender": ("female",)}, users[0]: {"age": ("30",)}})
    delete_user(database, users[1])
    artifact = collect(str(tmp_path / "out"), world.registry, "r1", url)
    items = {row["item_id"]: row for row in rows_of(artifact, "items.parquet")}
    assert items.keys() == {*ids[1:], "zz", "challenger's"}
    assert items["challenger's"]["title"] == "challenger's"
    assert artifact.facts["items_without_text"] == 1
    assert items["zz"] == {"item_id": "zz", "title": "Zeppelin", "genres": ["Drama", "War"],
                           "year": []}
    assert (items[ids[1]]["title"], items[ids[1]]["genres"]) == ("Renamed", [])
    assert items[ids[2]]["title"] == world.catalogue.titles[2]
    profiles = {row["user_id"]: row for row in rows_of(artifact, "users.parquet")}
    assert profiles["new"] == {"user_id": "new", "gender": ["female"], "age": [], "occupation": []}
    assert (profiles[users[0]]["age"], profiles[users[0]]["gender"]) == (["30"], [])
    untouched = world.profiles.of(users[2]).fields or {}
    assert profiles[users[2]]["gender"] == list(untouched["gender"])
    assert users[1] not in profiles
    assert users[1] not in {row["user_id"] for row in rows_of(artifact, "interactions/")}


def test_without_events_or_database_there_is_nothing_to_collect(
    world: TinyWorld, url: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"no service has run on .*state\.db"):
        collect(str(tmp_path / "out"), world.registry, "r1", url)
    assert not (tmp_path / "state.db").exists()
    open_database(url).dispose()
    with pytest.raises(DataError, match="no event is stored"):
        collect(str(tmp_path / "out"), world.registry, "r1", url)
    assert list((tmp_path / "out").glob("collected-*/manifest.json")) == []


def test_a_bucket_may_be_filled(
    world: TinyWorld, database: Engine, url: str, s3_root: str
) -> None:
    artifact = collect(f"{s3_root}/collected", world.registry, "r1", url)
    artifact.verify()
    assert len(rows_of(artifact, "interactions/")) == 240


def test_a_broken_release_is_refused(
    world: TinyWorld, database: Engine, url: str, tmp_path: Path
) -> None:
    folder = Path(world.publish("broken"))
    (folder / "catalogue.parquet").write_bytes(b"PAR1")
    with pytest.raises(ChecksumError, match=r"catalogue\.parquet"):
        collect(str(tmp_path / "out"), world.registry, "broken", url)


def receive(
    database: Engine, monkeypatch: pytest.MonkeyPatch, received_s: int, *events: Event
) -> None:
    """Store events as if they had come at that time."""
    monkeypatch.setattr("engine.state.events.time.time", lambda: received_s)
    append(database, events)


def test_a_drop_has_the_events_that_came_within_its_bounds(
    world: TinyWorld, database: Engine, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, users = world.catalogue.item_ids, sorted(world.histories)
    receive(database, monkeypatch, 1000, Event("e0", users[0], ids[1], 900, 5.0, 1))
    receive(database, monkeypatch, 1001, Event("e1", "new", ids[2], 950, 1.0, 0),
            Event("e2", users[3], ids[1], 2, None, 1))
    receive(database, monkeypatch, 1010, Event("e3", users[3], "unheard", 1, 2.0, 0),
            Event("e2", users[3], ids[1], 2, None, 1))        # sent again
    receive(database, monkeypatch, 1011, Event("e4", users[1], ids[3], 5, 4.0, 1))
    put_items(database, [
        SentItem("zz", "Zeppelin"), SentItem(ids[5], "Renamed"),
        SentItem(ids[6], world.catalogue.titles[6], world.catalogue.values_of(6)),      # as it was
        SentItem(ids[7], is_withdrawn=True),
    ])
    put_profiles(database, {
        "sent": {"gender": ("female",)}, users[4]: {"age": ("30",)},
        users[5]: world.profiles.of(users[5]).fields or {},                             # as it was
    })
    out = str(tmp_path / "out")
    bounds = {"since_s": 1000, "until_s": 1010}
    drop = collect_day(out, world.registry, "r1", url, **bounds, part_rows=2)
    drop.verify()
    assert drop.kind == "drop"
    assert drop.facts == {
        "events": 3, "changed_ratings": 0, "items": 5, "items_without_text": 1, "users": 3,
    }
    assert len(drop.files("interactions/")) == 2
    assert rows_of(drop, "interactions/") == [
        {"user_id": user, "item_id": item, "timestamp": time_s, "label": label, "rating": rating}
        for user, item, time_s, label, rating in sorted([
            (users[3], "unheard", 1, 0, 2.0), (users[3], ids[1], 2, 1, 4.0),
            ("new", ids[2], 950, 0, 1.0),
        ], key=lambda row: (row[0].encode(), row[2]))
    ]
    items = {row["item_id"]: row["title"] for row in rows_of(drop, "items.parquet")}
    assert items == {
        ids[1]: world.catalogue.titles[1], ids[2]: world.catalogue.titles[2], "unheard": "unheard",
        "zz": "Zeppelin", ids[5]: "Renamed",
    }
    profiles = {row["user_id"]: row for row in rows_of(drop, "users.parquet")}
    assert sorted(profiles) == sorted([users[3], users[4], "sent"])
    assert profiles[users[4]] == {
        "user_id": users[4], "gender": [], "age": ["30"], "occupation": [],
    }


def test_a_drop_is_found_again_and_does_not_depend_on_what_came_later(
    world: TinyWorld, database: Engine, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive(database, monkeypatch, 1005, Event("e1", "ann", "1", 7, 5.0, 1),
            Event("e2", "bob", "1", 6, 5.0, 1))
    bounds = {"since_s": 1000, "until_s": 1010}
    first = collect_day(str(tmp_path / "out"), world.registry, "r1", url, **bounds)
    receive(database, monkeypatch, 1011, Event("e3", "bob", "1", 8, 5.0, 1))
    assert collect_day(str(tmp_path / "out"), world.registry, "r1", url, **bounds) == first
    other = collect_day(str(tmp_path / "other"), world.registry, "r1", url, **bounds)
    assert other.manifest()["files"] == first.manifest()["files"]
    assert other.key == first.key
    delete_user(database, "ann")
    without = collect_day(str(tmp_path / "out"), world.registry, "r1", url, **bounds)
    assert without.key != first.key
    assert {row["user_id"] for row in rows_of(without, "interactions/")} == {"bob"}


def test_days_next_to_each_other_have_together_what_one_long_day_has(
    world: TinyWorld, database: Engine, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        user = sorted(world.histories)[number % 5]
        receive(database, monkeypatch, 1000 + number, Event(f"e{number}", user, "1", 5, 4.0, 1))

    def rows(since_s: int, until_s: int) -> list[str]:
        drop = collect_day(
            str(tmp_path / "out"), world.registry, "r1", url, since_s=since_s, until_s=until_s
        )
        return [str(row) for row in rows_of(drop, "interactions/")]

    whole = rows(0, 2000)
    assert len(whole) == 30
    assert sorted([*rows(0, 1007), *rows(1007, 1008), *rows(1008, 2000)]) == sorted(whole)


def test_a_day_without_events_is_a_drop_without_rows(
    world: TinyWorld, database: Engine, url: str, tmp_path: Path
) -> None:
    drop = collect_day(
        str(tmp_path / "out"), world.registry, "r1", url, since_s=1000, until_s=1000
    )
    drop.verify()
    assert drop.facts == {
        "events": 0, "changed_ratings": 0, "items": 0, "items_without_text": 0, "users": 0,
    }
    [part] = drop.files("interactions/")
    assert storage.read_table(part).column_names == [
        "user_id", "item_id", "timestamp", "label", "rating",
    ]
    for name in ("interactions/", "items.parquet", "users.parquet"):
        assert rows_of(drop, name) == []


def test_a_day_that_ends_before_it_begins_is_refused(
    world: TinyWorld, database: Engine, url: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="a day from 1000 to 940: 0 <= since <= until must hold"):
        collect_day(
            str(tmp_path / "out"), world.registry, "r1", url, since_s=1000, until_s=940
        )


def test_a_drop_of_a_broken_release_is_refused(
    world: TinyWorld, database: Engine, url: str, tmp_path: Path
) -> None:
    folder = Path(world.publish("torn"))
    (folder / "users.parquet").write_bytes(b"PAR1")
    with pytest.raises(ChecksumError, match=r"users\.parquet"):
        collect_day(str(tmp_path / "out"), world.registry, "torn", url, since_s=0, until_s=9)


def test_what_was_collected_is_imported_as_it_was(
    ray_local: str, world: TinyWorld, database: Engine, url: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The settings that the job prints are all that a training needs."""
    from engine.stages.interactions import import_data

    put_items(database, [SentItem("zz", "Zeppelin", {"genres": ("Drama",)})])
    gone, kept = sorted(world.histories)[:2]
    delete_user(database, gone)
    now_s = int(time.time())
    append(database, [Event("e1", kept, "zz", now_s, None, 1), Event("e2", "new", "1", 5, 5.0, 0)])
    serve = tmp_path / "serve.yaml"
    serve.write_text(yaml.safe_dump({"applications": [{
        "args": {"database_url": url},
        "deployments": [{"user_config": {"registry": world.registry_root, "change": 1}}],
    }]}))
    assert job.main(["--serve-config", str(serve), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    values = yaml.safe_load(printed[printed.index("run:"):])
    assert values["run"] == {"state": url}
    config = EngineConfig.model_validate(values)
    imported = import_data(str(tmp_path / "run"), config)
    found = {
        (row["user_id"], row["item_id"], row["timestamp_s"], row["label"], row["rating"])
        for uri in imported.files("interactions/") for row in storage.read_table(uri).to_pylist()
    }
    events = rows_of(open_artifact(values["source"]["path"]), "interactions/")
    assert found == {
        (row["user_id"], row["item_id"], row["timestamp"], row["label"], row["rating"])
        for row in events
    }
    assert {(kept, "zz", now_s, 1, 4.0), ("new", "1", 5, 0, 1.0)} <= found
    assert gone not in {user_id for user_id, *_ in found}
    assert imported.facts["quarantined"] == {"events": {}, "items": {}, "users": {}}
    items = {row["item_id"]: row
             for row in storage.read_table(imported.path("items.parquet")).to_pylist()}
    assert (items["zz"]["title"], items["zz"]["genres"]) == ("Zeppelin", ["Drama"])
    for item, item_id in enumerate(world.catalogue.item_ids[1:], start=1):
        assert items[item_id]["title"] == world.catalogue.titles[item]
        assert items[item_id]["genres"] == list(world.catalogue.values_of(item)["genres"])
    users = {row["user_id"]: row
             for row in storage.read_table(imported.path("users.parquet")).to_pylist()}
    assert sorted(users) == sorted(set(world.histories) - {gone})
    for user_id, row in users.items():
        assert row["occupation"] == list((world.profiles.of(user_id).fields or {})["occupation"])
