import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from engine import storage
from engine.artifacts import Artifact, open_artifact
from engine.config import EngineConfig, default_state
from engine.data.schema import (
    INTERACTIONS,
    QUARANTINE,
    items_schema,
    partition_of,
    users_schema,
)
from engine.errors import ArtifactError, ConfigError, DataQualityError
from engine.stages.interactions import import_data
from engine.state.database import open_database
from engine.state.deletions import delete_user
from tests.generated import (
    make_sample,
    write_movielens_csv,
    write_movielens_dat,
    write_online_retail,
    write_recbole,
    zip_folder,
)

pytestmark = pytest.mark.usefixtures("ray_local")

RETAIL = {
    "format": "csv", "label": {"kind": "implicit"}, "item_fields": [], "user_fields": ["country"],
}


def _config(path: str, partitions: int = 3, **source: Any) -> EngineConfig:
    return EngineConfig.model_validate({
        "source": {"path": path, **source}, "histories": {"num_partitions": partitions},
        "prompt": {"history_fields": [], "candidate_fields": []},
    })


def _with_state(config: EngineConfig, state: str) -> EngineConfig:
    return config.model_copy(update={"run": config.run.model_copy(update={"state": state})})


def _delete(state: str, user_id: str, time_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.state.deletions.time.time", lambda: time_s)
    database = open_database(state)
    delete_user(database, user_id)
    database.dispose()


def _read(artifact: Artifact, folder: str) -> pa.Table:
    return pa.concat_tables(storage.read_table(uri) for uri in artifact.files(folder))


def _events(artifact: Artifact) -> list[tuple[Any, ...]]:
    return sorted(tuple(row.values()) for row in _read(artifact, "interactions/").to_pylist())


def _checksums(artifact: Artifact) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in artifact.manifest()["files"].items()}


@pytest.mark.parametrize(("writer", "format", "shift"), [
    (write_recbole, "recbole", 0.0), (write_movielens_dat, "movielens", 0.0),
    (write_movielens_csv, "movielens", -0.5),
])
def test_every_layout_gives_the_events_that_were_written(
    tmp_path: Path, writer: Callable[..., str], format: str, shift: float
) -> None:
    config = _config(writer(tmp_path / "in"), format=format, rating_min=0.5)
    artifact = import_data(str(tmp_path / "run"), config)
    sample = make_sample()
    assert _events(artifact) == sorted(
        (user, item, time_s, rating + shift, int(rating + shift >= 4))
        for user, item, rating, time_s in sample.events
    )
    assert artifact.facts["quarantined"] == {"events": {}, "items": {}, "users": {}}
    assert artifact.facts["events"] == len(sample.events)


def test_tables_have_the_declared_schemas_and_users_their_partition(tmp_path: Path) -> None:
    config = _config(write_recbole(tmp_path / "in"))
    artifact = import_data(str(tmp_path / "run"), config)
    fields = config.source.item_fields, config.source.user_fields
    assert storage.read_table(artifact.path("items.parquet")).schema == items_schema(fields[0])
    assert storage.read_table(artifact.path("users.parquet")).schema == users_schema(fields[1])
    files = artifact.files("interactions/")
    assert len(files) == 3
    for number, uri in enumerate(files):
        table = storage.read_table(uri)
        assert table.schema == INTERACTIONS
        assert {partition_of(user, 3) for user in table["user_id"].to_pylist()} <= {number}
        order = ["user_id", "timestamp_s", "item_id"]
        assert table.equals(table.sort_by([(name, "ascending") for name in order]))
    assert _read(artifact, "quarantine/").schema == QUARANTINE


def test_chunks_and_a_zip_change_nothing(tmp_path: Path) -> None:
    folder = write_movielens_dat(tmp_path / "in")
    one = import_data(str(tmp_path / "a"), _config(folder, format="movielens"))
    other = import_data(
        str(tmp_path / "b"),
        _config(zip_folder(folder, "inner"), format="movielens", chunk_rows=50),
    )
    assert other.key == one.key                     # the key is made of what the files hold
    assert _checksums(other) == _checksums(one)


def test_the_number_of_partitions_changes_only_where_users_stand(tmp_path: Path) -> None:
    path = write_recbole(tmp_path / "in")
    few = import_data(str(tmp_path), _config(path, 2))
    many = import_data(str(tmp_path), _config(path, 60))        # some partitions have no user
    assert len(many.files("interactions/")) == 60
    assert _events(few) == _events(many)
    assert few.key != many.key


def test_bad_rows_are_quarantined_with_source_line_text_and_reason(tmp_path: Path) -> None:
    folder = Path(write_recbole(tmp_path / "in", events=300))
    lines = (folder / "small.inter").read_text().splitlines()
    bad = {
        5: "\t1\t3\t880000000", 9: "1\t\t3\t880000000", 12: "1\t1\t3\tsoon",
        20: "1\t1\t7\t880000000", 33: "1\t999\t3\t880000000", 41: "1\t1\t3", 50: lines[1],
    }
    for line, text in sorted(bad.items()):
        lines.insert(line - 1, text)
    (folder / "small.inter").write_text("\n".join(lines) + "\n")
    config = _config(str(folder), max_bad_share=0.1)
    artifact = import_data(str(tmp_path / "run"), config)
    reasons = {
        "missing user": 1, "missing item": 1, "time cannot be read": 1, "rating out of range": 1,
        "unknown item": 1, "wrong number of columns": 1, "duplicate event": 1,
    }
    assert artifact.facts["quarantined"]["events"] == reasons
    assert artifact.facts["events"] == 300
    rows = {row["line"]: row for row in _read(artifact, "quarantine/part-").to_pylist()}
    assert {line: row["text"] for line, row in rows.items()} == bad
    assert {row["source"] for row in rows.values()} == {"small.inter"}
    assert rows[33]["reason"] == "unknown item"
    assert rows[50]["reason"] == "duplicate event"


def test_too_many_bad_rows_stop_the_import_but_can_be_looked_at(tmp_path: Path) -> None:
    folder = Path(write_recbole(tmp_path / "in", events=100))
    with (folder / "small.inter").open("a") as stream:
        stream.writelines(f"1\t1\t9\t{880_000_000 + place}\n" for place in range(10))
    with pytest.raises(DataQualityError, match=r"10 of 110 .*10 rating out of range") as caught:
        import_data(str(tmp_path / "run"), _config(str(folder)))
    quarantine = str(caught.value).rpartition("see ")[2]
    rows = [
        row for name in storage.list_files(quarantine)
        for row in storage.read_table(storage.join(quarantine, name)).to_pylist()
    ]
    assert [row["reason"] for row in rows] == ["rating out of range"] * 10
    with pytest.raises(ArtifactError, match="has not finished"):
        open_artifact(quarantine.rpartition("/")[0])


def test_a_changed_source_is_imported_anew(tmp_path: Path) -> None:
    config = _config(write_recbole(tmp_path / "in"))
    before = import_data(str(tmp_path / "run"), config)
    write_recbole(tmp_path / "in", seed=1)
    after = import_data(str(tmp_path / "run"), config)
    assert after.key != before.key
    assert _events(after) != _events(before)


def test_parquet_with_user_fields_in_the_interactions_equals_csv(tmp_path: Path) -> None:
    folder = Path(write_online_retail(tmp_path / "in"))
    (tmp_path / "pq").mkdir()
    for name in ("interactions", "items"):
        table = pacsv.read_csv(folder / f"{name}.csv")
        pq.write_table(table, tmp_path / "pq" / f"{name}.parquet")
    of_csv = import_data(str(tmp_path / "run"), _config(str(folder), **RETAIL))
    of_parquet = import_data(
        str(tmp_path / "run"), _config(str(tmp_path / "pq"), **{**RETAIL, "format": "parquet"})
    )
    assert _checksums(of_csv) == _checksums(of_parquet)
    users = storage.read_table(of_csv.path("users.parquet")).to_pylist()
    assert {user["user_id"]: user["country"] for user in users}["3"] == ["Spain"]
    assert of_csv.facts["active_users"] == of_csv.facts["users"] == len(users)
    assert of_csv.facts["positives"] == of_csv.facts["events"]


def test_without_an_items_file_the_items_are_those_of_the_events(tmp_path: Path) -> None:
    folder = Path(write_online_retail(tmp_path / "in"))
    (folder / "items.csv").unlink()
    artifact = import_data(str(tmp_path / "run"), _config(str(folder), **RETAIL))
    items = storage.read_table(artifact.path("items.parquet")).to_pylist()
    seen = sorted({event[1] for event in _events(artifact)})
    assert [(row["item"], row["item_id"], row["title"]) for row in items] == [
        (place, item_id, item_id) for place, item_id in enumerate(seen, start=1)
    ]


def test_a_run_and_a_source_in_an_object_store_work_like_local_ones(
    tmp_path: Path, s3_root: str
) -> None:
    path = zip_folder(write_recbole(tmp_path / "in"))
    storage.copy_file(path, storage.join(s3_root, "in.zip"))
    local = import_data(str(tmp_path / "run"), _config(path))
    remote = import_data(storage.join(s3_root, "run"), _config(storage.join(s3_root, "in.zip")))
    assert _checksums(remote) == _checksums(local)


def test_movielens_100k_has_its_published_counts(tmp_path: Path, ml_100k: str) -> None:
    facts = import_data(str(tmp_path), _config(ml_100k)).facts
    assert (facts["events"], facts["active_users"], facts["active_items"]) == (100_000, 943, 1682)
    assert facts["positives"] == 55_375
    assert facts["quarantined"] == {"events": {}, "items": {}, "users": {}}


@pytest.mark.slow
def test_movielens_1m_in_grouplens_own_zip(tmp_path: Path) -> None:
    """LIFELORA_ML1M: path of ml-1m.zip; without it a generated set of the same layout."""
    given = os.environ.get("LIFELORA_ML1M")
    path = given or zip_folder(write_movielens_dat(tmp_path / "in"), "ml-1m")
    artifact = import_data(str(tmp_path / "run"), _config(path, format="movielens"))
    assert sum(artifact.facts["quarantined"]["events"].values()) == 0
    assert artifact.facts["events"] == (891_800 if given else 1200)


@pytest.mark.slow
def test_online_retail_in_its_zip(tmp_path: Path) -> None:
    """LIFELORA_ONLINE_RETAIL: path of online-retail.zip; without it a generated set."""
    given = os.environ.get("LIFELORA_ONLINE_RETAIL")
    path = given or zip_folder(write_online_retail(tmp_path / "in"))
    artifact = import_data(str(tmp_path / "run"), _config(path, **RETAIL))
    if given:
        assert (artifact.facts["events"], artifact.facts["items"]) == (220_878, 3_506)
    users = storage.read_table(artifact.path("users.parquet"))
    assert len(users) == artifact.facts["active_users"]
    assert all(len(countries) == 1 for countries in users["country"].to_pylist())


def test_of_deleted_users_nothing_up_to_their_deletion_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither events nor profile nor quarantine; who came back later has the events since."""
    folder = Path(write_recbole(tmp_path / "in", events=300))
    times = sorted(time_s for user, _, _, time_s in make_sample(events=300).events if user == "7")
    returned_s = times[len(times) // 2]
    with (folder / "small.inter").open("a") as stream:
        stream.write("3\t1\t9\t880000000\n7\t1\t3\tsoon\n8\t1\t9\t880000000\n3\t1\n")
    with (folder / "small.user").open("a") as stream:
        stream.write("3\t30\tF\tpainter\t00000\n8\t30\tF\tpainter\t00000\n3\t30\n")
    config = _config(str(folder), max_bad_share=0.1)
    whole = import_data(str(tmp_path / "run"), config)
    state = f"sqlite:///{tmp_path}/state.db"
    _delete(state, "somebody else", returned_s, monkeypatch)
    config = _with_state(config, state)
    same = import_data(str(tmp_path / "run"), config)
    assert _events(same) == _events(whole)
    assert same.facts["deleted_events"] == whole.facts["deleted_events"] == 0

    _delete(state, "3", 2_000_000_000, monkeypatch)
    _delete(state, "7", returned_s, monkeypatch)
    artifact = import_data(str(tmp_path / "run"), config)
    assert artifact.key != same.key
    expected = [
        row for row in _events(whole)
        if row[0] != "3" and not (row[0] == "7" and row[2] <= returned_s)
    ]
    assert _events(artifact) == expected
    assert {row[0] for row in expected} & {"3", "7"} == {"7"}
    gone = len(_events(whole)) - len(expected)
    assert artifact.facts["deleted_events"] == gone + 2         # and two in quarantine
    profiles = storage.read_table(artifact.path("users.parquet"))["user_id"].to_pylist()
    assert not {"3", "7"} & set(profiles)
    assert len(profiles) == 38
    refused = _read(artifact, "quarantine/")
    assert refused["reason"].to_pylist().count("wrong number of columns") == 2
    texts = [text.split("\t")[0] for text in refused["text"].to_pylist() if text is not None]
    assert texts == ["8", "8"]                  # the others do not tell whose they are
    assert len(refused) == 4
    assert not any("somebody" in text for text in Path(artifact.path("manifest.json"))
                   .read_text().splitlines())


def test_a_state_that_does_not_exist_is_not_taken_for_one_without_deletions(
    tmp_path: Path
) -> None:
    config = _with_state(_config(write_recbole(tmp_path / "in")), f"sqlite:///{tmp_path}/typo.db")
    with pytest.raises(ConfigError, match=r"typo\.db"):
        import_data(str(tmp_path / "run"), config)


def test_where_no_service_has_run_yet_nobody_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIFELORA_HOME", str(tmp_path))
    config = _with_state(_config(write_recbole(tmp_path / "in")), default_state())
    before = import_data(str(tmp_path / "run"), config)
    assert not (tmp_path / "state").exists()
    _delete(default_state(), "3", 2_000_000_000, monkeypatch)
    after = import_data(str(tmp_path / "run"), config)
    assert {row[0] for row in _events(before)} - {row[0] for row in _events(after)} == {"3"}
