import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from engine.config import load_config
from jobs.import_data import main
from tests.generated import write_recbole

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"


def _config(folder: Path, source: str) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({
        "run": {"root": str(folder / "run")}, "source": {"path": source},
        "histories": {"num_partitions": 2},
    }))
    return str(path)


@pytest.mark.usefixtures("ray_local")
def test_counts_quarantine_and_place_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(write_recbole(tmp_path / "in", events=200))
    with (folder / "small.inter").open("a") as stream:
        stream.write("1\t1\t9\t880000000\n")
    config = _config(tmp_path, "nowhere")
    assert main(["--config", config, "--source", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "200 events of" in printed
    assert "quarantined events: 1 rating out of range" in printed
    assert f"output: {tmp_path}/run/interactions-" in printed


@pytest.mark.usefixtures("ray_local")
def test_an_error_exits_1_with_its_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", _config(tmp_path, str(tmp_path / "nowhere"))]) == 1
    assert "error: source" in capsys.readouterr().err


def test_a_wrong_config_exits_1_before_ray_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml" in capsys.readouterr().err


def test_help_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys\nfrom jobs.import_data import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.endswith("[]\n")
    assert "--config" in result.stdout


@pytest.mark.parametrize("name", ["ml-1m", "online-retail"])
def test_configs_of_other_data_sets_are_valid(name: str) -> None:
    config = load_config(str(CONFIGS / f"{name}.yaml"))
    assert config.run.root == f"runs/{name}"
