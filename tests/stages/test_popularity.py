"""Counting over partitions of histories."""

import numpy as np
import pyarrow as pa
import pytest

from engine import artifacts, storage
from engine.config import EngineConfig, RolesConfig
from engine.data.roles import Role, Roles
from engine.data.schema import HISTORIES, items_schema, part_name
from engine.data.splits import write_timeline
from engine.models.popularity import Popularity
from engine.stages.popularity import count_partition, count_popularity
from engine.types import Timeline

USERS = [
    {"user_id": "a", "items": [1, 2, 1], "ratings": [5, 2, 4], "labels": [1, 0, 1],
     "timestamps_s": [10, 20, 70]},
    {"user_id": "b", "items": [1], "ratings": [1], "labels": [0], "timestamps_s": [69]},
    {"user_id": "c", "items": [3, 3], "ratings": [5, 5], "labels": [1, 1],
     "timestamps_s": [71, 99]},
]


def make_histories(run: str) -> artifacts.Artifact:
    def write(folder: str) -> dict[str, int]:
        for part, users in enumerate((USERS[:2], USERS[2:], [])):
            table = pa.Table.from_pylist(users, HISTORIES)
            storage.write_table(storage.join(folder, part_name("histories", part)), table)
        items = [{"item": k, "item_id": str(k), "title": str(k)} for k in (1, 2, 3)]
        table = pa.Table.from_pylist(items, items_schema(()))
        storage.write_table(storage.join(folder, "items.parquet"), table)
        write_timeline(storage.join(folder, "timeline.json"), Timeline(0, 40, 70, 80, 99))
        return {}

    return artifacts.make(run, "histories", {}, [], write)


def test_one_partition_counts_events_before_the_cut_only(tmp_path):
    histories = make_histories(str(tmp_path))
    counted = count_partition(
        {"partition": 0}, histories=histories.uri, before_s=70, num_items=4
    )
    assert counted["events"].tolist() == [0, 2, 1, 0]
    assert counted["positives"].tolist() == [0, 1, 0, 0]


def test_all_partitions_are_added(ray_local, tmp_path):
    made = count_popularity(str(tmp_path), EngineConfig(), make_histories(str(tmp_path)))
    popularity = Popularity.load(made.path("popularity.safetensors"))
    assert popularity.events.tolist() == [0, 2, 1, 0]
    assert popularity.positives.tolist() == [0, 1, 0, 0]
    assert made.facts == {"events": 3, "positives": 1, "items_seen": 2, "items": 3}
    mean = 1.5 / 4
    rates = (np.array([0, 1, 0, 0]) + 10 * mean) / (np.array([0, 2, 1, 0]) + 10)
    assert popularity.scores == pytest.approx(np.log(rates / (1 - rates)), abs=1e-6)


def test_what_judges_is_never_counted(ray_local, tmp_path):
    judged = Roles(RolesConfig(judge=0.9, bank=0.01, tune=0.0), since_s=20)
    assert all(judged.of(user, np.array([20]))[0] == Role.JUDGE for user in "abc")
    histories = make_histories(str(tmp_path))
    made = count_popularity(str(tmp_path), EngineConfig(), histories, judged)
    assert Popularity.load(made.path("popularity.safetensors")).events.tolist() == [0, 1, 0, 0]
    free = Roles(RolesConfig(), since_s=100)
    whole = count_popularity(str(tmp_path), EngineConfig(), histories, free)
    assert Popularity.load(whole.path("popularity.safetensors")).events.tolist() == [0, 3, 1, 2]
