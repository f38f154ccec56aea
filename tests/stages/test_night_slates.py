"""Slates of a night: each role where it belongs, nothing judged, old rows replayed by weight."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine import storage
from engine.artifacts import Artifact
from engine.config import EngineConfig, RolesConfig
from engine.data.roles import NightRows, Role, Roles
from engine.data.schema import HISTORIES, part_name, partition_of
from engine.data.splits import DAY_S, write_timeline
from engine.stages.night_slates import active_since, build_night_slates
from engine.types import Timeline, Window

pytestmark = pytest.mark.usefixtures("ray_local")

PARTITIONS = 3
SINCE_S, END_S = 100 * DAY_S, 140 * DAY_S
ROLES = Roles(RolesConfig(judge=0.2, tune=0.1, bank=0.3, rotate_days=7), SINCE_S)
ROWS = NightRows(
    ROLES, crm_since_s=120 * DAY_S, bank_since_s=130 * DAY_S, tune_since_s=125 * DAY_S, end_s=END_S
)
NUM_ITEMS = 40


def _histories(folder: Path, num_users: int = 120) -> Artifact:
    """Return histories of users with an event every few days; a third of them came to an end."""
    rng = np.random.default_rng(5)
    rows: list[list[dict[str, Any]]] = [[] for _ in range(PARTITIONS)]
    for number in range(num_users):
        user_id, last = f"u{number}", 60 if number % 3 == 0 else 150
        days = np.sort(rng.choice(np.arange(40, last), 20, replace=False))
        rows[partition_of(user_id, PARTITIONS)].append({
            "user_id": user_id, "items": rng.integers(1, NUM_ITEMS + 1, 20),
            "ratings": np.ones(20), "labels": rng.integers(0, 2, 20), "timestamps_s": days * DAY_S,
        })
    files = {}
    for partition, part in enumerate(rows):
        name = part_name("histories", partition)
        table = pa.Table.from_pylist(sorted(part, key=lambda row: row["user_id"]), HISTORIES)
        storage.write_table(str(folder / name), table)
        files[name] = {}
    items = pa.table({"item_id": [f"i{item}" for item in range(NUM_ITEMS)]})
    storage.write_table(str(folder / "items.parquet"), items)
    write_timeline(str(folder / "timeline.json"), Timeline(0, END_S, END_S, END_S, END_S))
    storage.write_json(str(folder / "manifest.json"), {"files": files})
    return Artifact("histories", "key", str(folder), {})


def _build(folder: Path, histories: Artifact, **night: Any) -> Artifact:
    config = EngineConfig.model_validate({
        "night": night, "slates": {"max_size": 4, "max_span_s": 10 * DAY_S},
    })
    popularity = Artifact("popularity", "key", "unread where labels are given", {})
    return build_night_slates(str(folder), config, histories, popularity, ROWS)


def _rows(slates: Artifact) -> list[dict[str, Any]]:
    tables = [storage.read_table(uri) for uri in slates.files("slates/")]
    return [
        {"user_id": row["user_id"], "window": row["window"], "time": time, "row": row}
        for row in pa.concat_tables(tables).to_pylist() for time in row["timestamps_s"]
    ]


def _role(row: dict[str, Any]) -> Role:
    return Role(ROLES.of(row["user_id"], np.array([row["time"]]))[0])


def test_new_rows_stand_in_the_window_of_their_role_and_no_other_row_does(tmp_path: Path) -> None:
    histories = _histories(tmp_path / "histories")
    found = _rows(_build(tmp_path, histories, replay=0.0))
    windows = {Role.CRM: Window.CRM, Role.BANK: Window.BANK, Role.TUNE: Window.VALIDATION}
    since = {Window.CRM: ROWS.crm_since_s, Window.BANK: ROWS.bank_since_s,
             Window.VALIDATION: ROWS.tune_since_s}
    for row in found:
        assert windows[_role(row)] == row["window"]
        assert since[row["window"]] <= row["time"] < END_S
    expected = 0
    for uri in histories.files("histories/"):
        for user in storage.read_table(uri).to_pylist():
            times = np.array(user["timestamps_s"])
            for role, time in zip(ROLES.of(user["user_id"], times), times, strict=True):
                if role in windows and since[windows[role]] <= time < END_S:
                    expected += 1
    assert len(found) == expected > 100


def test_replay_takes_its_share_of_old_rows_and_none_that_judge(tmp_path: Path) -> None:
    histories = _histories(tmp_path / "histories", num_users=600)
    slates = _build(tmp_path, histories, replay=0.2)
    found = _rows(slates)
    for window, since_s, roles in (
        (Window.CRM, ROWS.crm_since_s, {Role.CRM, Role.OLD}),
        (Window.BANK, ROWS.bank_since_s, {Role.BANK}),
    ):
        rows = [row for row in found if row["window"] == window]
        old = [row for row in rows if row["time"] < since_s]
        assert {_role(row) for row in rows} <= roles
        assert len(old) == pytest.approx(0.2 * len(rows), rel=0.1)
        assert slates.facts[f"replayed_{window.name.lower()}_rows"] == len(old)
    assert not [row for row in found if _role(row) == Role.JUDGE]
    partitions = {partition_of(row["user_id"], PARTITIONS) for row in found
                  if row["time"] < ROWS.tune_since_s and row["window"] == Window.CRM
                  and row["time"] < ROWS.crm_since_s}
    assert len(partitions) == 1


def test_users_without_newer_events_are_replayed_more_often(tmp_path: Path) -> None:
    histories = _histories(tmp_path / "histories", num_users=900)

    def share_of_idle(weight: float) -> float:
        found = _rows(_build(tmp_path, histories, replay=0.05, replay_weight=weight))
        old = [row for row in found if row["time"] < ROWS.crm_since_s
               and row["window"] == Window.CRM]
        return float(np.mean([int(row["user_id"][1:]) % 3 == 0 for row in old]))

    assert share_of_idle(10.0) > share_of_idle(1.0) + 0.1


def test_history_lengths_count_rows_of_every_role(tmp_path: Path) -> None:
    histories = _histories(tmp_path / "histories")
    users = {
        user["user_id"]: np.array(user["timestamps_s"])
        for uri in histories.files("histories/") for user in storage.read_table(uri).to_pylist()
    }
    for row in _rows(_build(tmp_path, histories)):
        lengths, times = row["row"]["row_history_lengths"], row["row"]["timestamps_s"]
        before = [int((users[row["user_id"]] < time).sum()) for time in times]
        assert lengths == before


def test_active_users_are_those_with_an_event_since() -> None:
    times = [[1, 2], [1, 9], [5], [4]]
    table = pa.table({"user_id": list("abcd"), "timestamps_s": pa.array(times)})
    assert active_since(table, 5)["user_id"].to_pylist() == ["b", "c"]
    assert active_since(table.slice(1, 0), 5).num_rows == 0
