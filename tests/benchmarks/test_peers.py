"""Other libraries' models: what is tried, and scripts that run once."""

import sys
from pathlib import Path

import pytest

from benchmarks.peers import environment
from benchmarks.peers.environment import run_script
from benchmarks.quality.grids import search
from engine.errors import ConfigError

SCRIPT = """
import sys
out = sys.argv[sys.argv.index("--out") + 1]
open(out, "w").write(sys.argv[1])
print("it was", sys.argv[1], file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


def test_every_combination_is_tried_and_the_best_on_validation_chosen():
    value = {(1, "a"): 0.5, (1, "b"): 0.7, (2, "a"): 0.7, (2, "b"): 0.6}
    found = search({"x": (1, 2), "y": ("a", "b")}, "auc", lambda s: value[s["x"], s["y"]])
    assert found.best == {"x": 1, "y": "b"}
    assert found.to_json() == [
        {"x": x, "y": y, "auc": auc} for (x, y), auc in value.items()
    ]


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for output, beside an environment `here` with one script."""
    python = tmp_path / "here" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setattr(environment, "ENVIRONMENTS", tmp_path)
    monkeypatch.setattr(environment, "HERE", tmp_path)
    return tmp_path


def test_a_script_runs_once_for_its_output(peers: Path) -> None:
    out = peers / "found.npz"
    run_script("here", "script.py", out, ["0"], threads=1)
    assert out.read_text() == "0"
    run_script("here", "script.py", out, ["7"], threads=1)      # would fail
    assert out.read_text() == "0"


def test_a_script_that_fails_says_why_and_leaves_no_output(peers: Path) -> None:
    out = peers / "found.npz"
    with pytest.raises(ConfigError, match=r"script.py ended with 7: it was 7"):
        run_script("here", "script.py", out, ["7"], threads=1)
    assert not out.exists()


def test_a_missing_environment_names_the_command_that_makes_it(peers: Path) -> None:
    with pytest.raises(ConfigError, match=r"make cache/peers/there/\.installed"):
        run_script("there", "script.py", peers / "found", [], threads=1)
