"""Turns, ratios and generated rows of the races."""

import numpy as np
import pytest

from benchmarks.crm_training import ROWS_PER_USER, Data
from benchmarks.histories import generate, growth
from benchmarks.race import Lap, race, summarise
from engine.storage import read_table


def test_subjects_alternate_and_the_first_round_does_not_count() -> None:
    turns: list[str] = []

    def subject(name: str, work: float) -> object:
        def run() -> float:
            turns.append(name)
            return work
        return run

    laps = race({"a": subject("a", 1.0), "b": subject("b", 2.0)}, rounds=2)     # type: ignore[dict-item]
    assert turns == ["b", "a", "a", "b", "b", "a"]
    assert [len(each) for each in laps.values()] == [2, 2]
    assert {lap.work for lap in laps["b"]} == {2.0}


def test_a_ratio_is_of_work_per_cpu_second_round_by_round() -> None:
    laps = {
        "one": [Lap(10, 1.0, 1.0), Lap(10, 2.0, 4.0)],
        "other": [Lap(30, 1.0, 1.0), Lap(10, 1.0, 2.0)],
    }
    found = summarise(laps, "one", "rows")
    assert found["one"]["rows_per_cpu_s"] == 7.5
    assert found["one"]["rows_per_wall_s"] == 6.25
    assert found["other"]["ratio_to_one"] == pytest.approx(2.5)     # 3 and 2
    assert found["other"]["ratio_range"] == pytest.approx([2.0, 3.0])


def test_a_subject_of_another_process_brings_its_own_lap() -> None:
    lap = Lap(5, 0.5, 1.0)
    assert race({"child": lambda: lap}, rounds=1) == {"child": [lap]}


def test_a_peers_row_holds_the_events_before_its_candidate() -> None:
    data = Data(length=6, rows=2 * ROWS_PER_USER)
    arrays = data.arrays()
    assert arrays["history_NL"].shape == (2 * ROWS_PER_USER, 6)
    row = ROWS_PER_USER + 3             # the fourth candidate of the second user
    history = data.histories()[1]
    np.testing.assert_array_equal(arrays["history_NL"][row], history.items[3:9])
    assert arrays["item_N"][row] == history.items[9]
    assert arrays["label_N"][row] == history.labels[9]


def test_generated_logs_have_the_size_asked_for_and_few_very_active_users(tmp_path) -> None:
    generate(tmp_path / "log", 20_000)
    users = read_table(str(tmp_path / "log/interactions.parquet"), ["user_id"])["user_id"]
    counts = np.sort([each["counts"] for each in users.value_counts().to_pylist()])[::-1]
    assert counts.sum() == 20_000
    assert counts[:10].sum() > 5 * np.median(counts) * 10


def test_growth_is_over_the_next_smaller_size() -> None:
    sizes = {"10": {"total_mib": 100.0}, "100": {"total_mib": 150.0}}
    assert growth(sizes) == {"100 over 10": 1.5}
