from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine import storage
from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.data.catalogue import Catalogue
from engine.data.schema import HISTORIES, histories_of, partition_of
from engine.data.splits import read_timeline
from engine.errors import DataError
from engine.stages.histories import build_histories
from engine.stages.interactions import import_data
from engine.types import History, Window
from tests.generated import make_sample, write_recbole

pytestmark = pytest.mark.usefixtures("ray_local")


def _config(path: str, partitions: int = 3, **sections: Any) -> EngineConfig:
    return EngineConfig.model_validate({
        "source": {"path": path}, "histories": {"num_partitions": partitions}, **sections,
    })


def _build(run: Path, config: EngineConfig) -> Artifact:
    return build_histories(str(run), config, import_data(str(run), config))


def _read(artifact: Artifact) -> dict[str, History]:
    tables = [storage.read_table(uri) for uri in artifact.files("histories/")]
    return histories_of(pa.concat_tables(tables))


def test_every_user_has_one_row_of_all_events_in_order(tmp_path: Path) -> None:
    artifact = _build(tmp_path / "run", _config(write_recbole(tmp_path / "in")))
    catalogue = Catalogue.from_table(storage.read_table(artifact.path("items.parquet")), ())
    sample = make_sample()
    histories = _read(artifact)
    assert set(histories) == {user for user, _, _, _ in sample.events}
    for user, history in histories.items():
        own = sorted(
            (time_s, catalogue.index_of(item), rating)
            for owner, item, rating, time_s in sample.events if owner == user
        )
        assert list(zip(history.timestamps_s, history.items, history.ratings, strict=True)) == own
    for number, uri in enumerate(artifact.files("histories/")):
        table = storage.read_table(uri)
        assert table.schema == HISTORIES
        assert {partition_of(user, 3) for user in table["user_id"].to_pylist()} <= {number}


def test_the_timeline_does_not_depend_on_the_partitions(tmp_path: Path) -> None:
    path = write_recbole(tmp_path / "in")
    few, many = (_build(tmp_path / "run", _config(path, count)) for count in (2, 50))
    timeline = read_timeline(few.path("timeline.json"))
    assert read_timeline(many.path("timeline.json")) == timeline
    assert few.facts["windows"] == many.facts["windows"]
    times = np.array([time_s for _, _, _, time_s in make_sample().events])
    windows = np.bincount(timeline.window_of(times), minlength=4)
    assert few.facts["windows"] == {
        window.name.lower(): int(windows[window]) for window in Window
    } == {"crm": 768, "bank": 192, "validation": 120, "test": 120}


def test_a_second_run_reuses_and_a_new_split_does_not(tmp_path: Path) -> None:
    path = write_recbole(tmp_path / "in")
    first = _build(tmp_path / "run", _config(path))
    assert _build(tmp_path / "run", _config(path)).uri == first.uri
    other = _build(tmp_path / "run", _config(path, split={"train": 0.7}))
    assert other.key != first.key
    assert other.manifest()["inputs"] == first.manifest()["inputs"]


def test_two_runs_have_equal_checksums(tmp_path: Path) -> None:
    config = _config(write_recbole(tmp_path / "in"))
    one, two = (_build(tmp_path / run, config) for run in ("one", "two"))
    assert one.manifest()["files"] == two.manifest()["files"]


def test_events_of_one_time_cannot_be_split(tmp_path: Path) -> None:
    folder = Path(write_recbole(tmp_path / "in", events=50))
    lines = (folder / "small.inter").read_text().splitlines()
    same = [lines[0], *(line.rpartition("\t")[0] + "\t880000000" for line in lines[1:])]
    (folder / "small.inter").write_text("\n".join(same) + "\n")
    with pytest.raises(DataError, match="would be empty"):
        _build(tmp_path / "run", _config(str(folder)))
