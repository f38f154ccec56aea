import logging
import time
from pathlib import Path

import pytest

from engine import storage
from engine.stages import progress


def test_writes_are_rare_but_the_end_is_always_written(tmp_path: Path) -> None:
    uri = str(tmp_path / "progress.json")
    write = progress.ProgressWriter(uri)
    write(1, 5)
    write(2, 5)
    assert storage.read_json(uri) == {"done": 1, "total": 5}
    write(5, 5)
    assert storage.read_json(uri) == {"done": 5, "total": 5}


def test_the_driver_logs_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "PERIOD_S", 0.01)
    uri = str(tmp_path / "progress.json")
    progress.ProgressWriter(uri)(9, 9)              # of an earlier training: not logged
    with caplog.at_level(logging.INFO), progress.logged_progress(uri, "bank"):
        pass
    assert not caplog.messages
    with caplog.at_level(logging.INFO), progress.logged_progress(uri, "bank"):
        progress.ProgressWriter(uri)(3, 4)
    assert caplog.messages[-1] == "bank: step 3 of 4"


def test_a_training_that_waits_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "PERIOD_S", 0.1)
    monkeypatch.setattr(progress, "PERIODS_OF_WAITING", 10)
    uri = str(tmp_path / "progress.json")
    with caplog.at_level(logging.INFO), progress.logged_progress(uri, "bank"):
        wait_for(caplog, 2)
        progress.ProgressWriter(uri)(1, 4)
        wait_for(caplog, 3)
        time.sleep(1.2)                                     # nor does it say so once it has begun
    assert [message.partition(":")[2].partition(":")[0] for message in caplog.messages[:3]] == [
        " no step within 1 s", " no step within 2 s", " step 1 of 4",
    ]
    assert not any("no step" in message for message in caplog.messages[3:])


def wait_for(caplog: pytest.LogCaptureFixture, lines: int) -> None:
    deadline = time.monotonic() + 30
    while len(caplog.messages) < lines and time.monotonic() < deadline:
        time.sleep(0.01)


def test_the_time_left_is_that_of_the_steps_left() -> None:
    assert progress.describe({"done": 30, "total": 50}, 2.0) == "step 30 of 50, about 40 s left"
    assert progress.describe({"done": 50, "total": 50}, 2.0) == "step 50 of 50"


def test_rows_are_counted_as_they_come(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "PERIOD_S", 0.0)
    with caplog.at_level(logging.INFO):
        assert list(progress.counted(iter("abc"), 3, "scores")) == ["a", "b", "c"]
    assert [message.partition(",")[0] for message in caplog.messages] == [
        "scores: step 1 of 3", "scores: step 2 of 3", "scores: step 3 of 3",
    ]
