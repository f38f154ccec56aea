"""What made a file: the commit, or what stands in for it."""

import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from engine import code_version as module
from engine.code_version import code_version


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with one commit, taken for the engine's own."""
    monkeypatch.delenv("LIFELORA_COMMIT", raising=False)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    for name in ("engine.py", "docs/results.md"):
        (tmp_path / name).write_text("first\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "first")
    code_version.cache_clear()
    yield tmp_path
    code_version.cache_clear()


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_a_checkout_is_its_commit_whatever_its_results_say(checkout: Path) -> None:
    (checkout / "docs/results.md").write_text("a new table\n")
    (checkout / "runs").mkdir()
    (checkout / "runs/notes").write_text("not tracked\n")
    assert code_version() == git(checkout, "describe", "--always")


def test_changed_code_is_dirty(checkout: Path) -> None:
    (checkout / "engine.py").write_text("changed\n")
    assert code_version() == f"{git(checkout, 'describe', '--always')}-dirty"


def test_without_a_checkout_it_is_named_or_the_version(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROOT", checkout / "docs")
    assert code_version() == version("lifelora")
    code_version.cache_clear()
    monkeypatch.setenv("LIFELORA_COMMIT", "abc1234")
    assert code_version() == "abc1234"
