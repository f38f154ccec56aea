"""The documents say what the code says."""

import re
import tomllib
from pathlib import Path

import pytest

from jobs.write_config_docs import main, render

REPO = Path(__file__).resolve().parents[1]
DOCUMENTS = [path for path in [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
             if path.is_file()]


def test_the_settings_page_is_made_from_the_settings(tmp_path: Path) -> None:
    assert main(["--output", str(tmp_path / "config.md")]) == 0
    written = (tmp_path / "config.md").read_text()
    assert (REPO / "docs" / "config.md").read_text() == written, "run `make docs`"


def test_the_settings_page_gives_name_default_limits_and_meaning() -> None:
    page = render()
    assert "### `source.label`" in page
    row = next(line for line in page.splitlines() if line.startswith("| `max_bad_share` |"))
    assert row.split(" | ")[1:3] == ["`0.02`", "number >= 0, <= 1"]
    assert "quarantined" in row


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_files_hold(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)", document.read_text())
    for link in links:
        assert (document.parent / link).exists(), f"{document.name}: {link}"


def make_commands(text: str) -> list[str]:
    """Return the targets of every `make ...` in backticks, and at the start of a line of code."""
    inline = re.findall(r"`make ([^`\n]+)`", text)
    in_blocks = re.findall(r"^(?: {4})?make ([^#\n]+)", text, re.MULTILINE)
    words = [word for command in (*inline, *in_blocks) for word in command.split()]
    return [word for word in words if "=" not in word and "/" not in word]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_name_make_targets_that_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))
    wanted = make_commands(document.read_text())
    assert set(wanted) <= targets, f"{document.name}: {sorted(set(wanted) - targets)}"
    assert document.name != "README.md" or {"demo", "test", "results-quick"} <= set(wanted)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_name_jobs_and_benchmarks_that_exist(document: Path) -> None:
    text = document.read_text()
    files = set(re.findall(r"python (?:-m )?((?:jobs|benchmarks)[/.][\w./]*\w)", text))
    for name in files:
        path = REPO / name.removesuffix(".py").replace(".", "/")
        assert path.with_suffix(".py").is_file() or path.is_dir(), f"{document.name}: {name}"


def test_the_changelog_begins_with_the_version_of_the_package() -> None:
    version = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"^## \[(.+?)\]", (REPO / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] in (version, "Unreleased")
    assert version in headings


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pins = [line for line in (REPO / "constraints.txt").read_text().splitlines()
            if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!]+", pin) for pin in pins)
    pinned = {_normal(pin.partition("==")[0]) for pin in pins}
    assert {_normal(re.split(r"[\[<>=~!; ]", name)[0]) for name in wanted} <= pinned
    assert "torch==2.13.0" in pins


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
