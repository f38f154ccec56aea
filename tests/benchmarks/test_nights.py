"""Plans and days of benchmarks/nights."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from benchmarks.nights.__main__ import line_of
from benchmarks.nights.days import cut_days, days_of
from benchmarks.nights.plan import read_plan
from engine import storage
from engine.artifacts import Artifact
from engine.data.schema import INTERACTIONS, items_schema, users_schema
from engine.errors import ConfigError

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted((REPO / "benchmarks/nights").glob("*.yaml")))
def test_every_arm_of_every_plan_is_a_valid_configuration(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPO)
    plan = read_plan(str(path))
    for arm in plan.arms.values():
        plan.engine_config(arm.overrides)


def _plan(folder: Path, **values: Any) -> str:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({
        "title": "t", "config": "c.yaml", "base": 0.5, "nights": 3, "arms": {"a": {}}, **values,
    }))
    return str(path)


def test_days_are_equal_shares_and_the_day_after_the_last_night_is_one(tmp_path: Path) -> None:
    plan = read_plan(_plan(tmp_path, end=0.9))
    assert plan.shares() == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])


@pytest.mark.parametrize("values", [{"base": 1.2}, {"nights": 0}, {"base": 0.9, "end": 0.8},
                                    {"speed": 3},
                                    {"arms": {"a": {"kind": "never"}}}])
def test_a_wrong_plan_is_named(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"plan\.yaml"):
        read_plan(_plan(tmp_path, **values))


def test_days_hold_every_event_once_and_the_items_and_users_of_their_events(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(3)
    events = [
        {"user_id": f"u{rng.integers(5)}", "item_id": f"i{rng.integers(9)}", "timestamp_s": time_s,
         "rating": 4.0, "label": 1} for time_s in rng.permutation(200).tolist()
    ]
    folder = tmp_path / "interactions"
    names = [f"interactions/part-{number:05d}.parquet" for number in range(2)]
    for number, name in enumerate(names):
        table = pa.Table.from_pylist(events[number::2], INTERACTIONS)
        storage.write_table(str(folder / name), table)
    items = [{"item": n + 1, "item_id": f"i{n}", "title": f"T{n}", "year": []} for n in range(9)]
    storage.write_table(str(folder / "items.parquet"),
                        pa.Table.from_pylist(items, items_schema(("year",))))
    users = [{"user_id": f"u{n}", "age": ["30"]} for n in range(5)]
    storage.write_table(str(folder / "users.parquet"),
                        pa.Table.from_pylist(users, users_schema(("age",))))
    storage.write_json(str(folder / "manifest.json"), {"files": {name: {} for name in names}})
    interactions = Artifact("interactions", "key", str(folder), {})

    days = days_of(cut_days(str(tmp_path / "run"), interactions, [0.5, 0.75, 1.0]))
    assert [day.events for day in days] == [101, 49, 50]
    assert days[0].end_s == days[1].start_s
    found = []
    for day in days:
        rows = storage.read_table(f"{day.folder}/interactions/part-00000.parquet").to_pylist()
        assert all(day.start_s <= row["timestamp"] < day.end_s for row in rows)
        for name in ("item", "user"):
            told = storage.read_table(f"{day.folder}/{name}s.parquet")[f"{name}_id"].to_pylist()
            assert set(told) == {row[f"{name}_id"] for row in rows}
        found += [(row["user_id"], row["item_id"], row["timestamp"]) for row in rows]
    wanted = [(row["user_id"], row["item_id"], row["timestamp_s"]) for row in events]
    assert sorted(found) == sorted(wanted)


def test_a_night_is_one_line() -> None:
    interval = {"value": 0.7, "low": 0.6, "high": 0.8}
    after = {model: {"auc": interval} for model in ("crm_calibrated", "fused")}
    night = {
        "night": 2, "kind": "held", "stage_seconds": [["crm", 41.2], ["bank", 20.2]],
        "day_after": {"sample": after, "minus_first": {"sample": after}},
    }
    line = line_of("nightly", night)
    assert line.startswith("nightly, night 2: held, 61 s of stages; crm_calibrated AUC 0.7000 [0.6")
    assert "minus the first release's +0.7000 [+0.6000, +0.8000]" in line
