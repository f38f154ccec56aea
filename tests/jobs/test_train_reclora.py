"""The whole pipeline: on a tiny model (restart, equal checksums), and for real, end to end."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine import storage
from engine.config import EngineConfig, load_config
from engine.releases.registry import Registry
from jobs import train_reclora
from tests.jobs.conftest import write_config

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_run_ends_with_a_live_verified_release_and_a_report(tiny_run: Any) -> None:
    config, outcome = tiny_run
    registry = Registry(config.run.registry)
    assert registry.live().release_id == outcome.release_id
    manifest = registry.verify(outcome.release_id)
    assert manifest.facts.mixing == "sum_of_products"
    assert manifest.facts.template_sha256
    assert "golden.json" in manifest.files
    [golden] = [name for name in storage.list_folders(config.run.root)
                if name.startswith("golden-")]
    left = storage.list_files(storage.join(config.run.root, golden))
    assert sorted(left) == ["golden.json", "manifest.json"]         # the draft is gone
    assert "<html" in storage.read_bytes(outcome.report.path("index.html")).decode()


@pytest.mark.slow
def test_a_second_run_reuses_every_stage_and_keeps_the_release(tiny_run: Any) -> None:
    config, outcome = tiny_run
    before = storage.list_files(config.run.root)
    assert train_reclora.run(config).release_id == outcome.release_id
    assert storage.list_files(config.run.root) == before


@pytest.mark.slow
def test_the_same_seed_on_an_object_store_gives_equal_checksums_and_metrics(
    tiny_run: Any, s3_root: str
) -> None:
    config, outcome = tiny_run
    values = config.settings()
    values["run"] |= {"root": f"{s3_root}/run", "registry": f"{s3_root}/releases"}
    again = train_reclora.run(EngineConfig.model_validate(values))
    assert again.release.startswith("s3://")
    Registry(f"{s3_root}/releases").verify(again.release_id)
    for kind in ("histories", "slates", "prompts"):
        first, second = (files_of(root, kind) for root in (config.run.root, f"{s3_root}/run"))
        assert first == second
        assert first
    for name, value in outcome.evaluation.facts.items():
        if isinstance(value, float):
            assert again.evaluation.facts[name] == pytest.approx(value, abs=2e-4), name


def files_of(root: str, kind: str) -> Any:
    """Return names and checksums of the files of a run's only artifact of a kind."""
    names = [name for name in storage.list_folders(root) if name.startswith(f"{kind}-")]
    assert len(names) == 1
    return storage.read_json(storage.join(root, names[0], "manifest.json"))["files"]


@pytest.mark.slow
def test_repeat_purchases_and_new_items_are_measured_apart(tiny_run: Any) -> None:
    _, outcome = tiny_run
    report = storage.read_json(outcome.evaluation.path("report.json"))
    kinds = {table["kind"] for table in report["tables"] if table["rows"] == "sample"}
    assert kinds == {"all", "repeat", "new"}


def test_help_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from jobs import train_reclora as t\n"
        "try: t.main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_wrong_setting_ends_with_exit_code_1_and_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(tmp_path, {"bank": {"rank": 0}})
    assert train_reclora.main(["--config", str(path)]) == 1
    assert "bank.rank" in capsys.readouterr().err
    assert train_reclora.main(["--config", str(path), "--set", "bank.rank=many"]) == 1
    assert "'many'" in capsys.readouterr().err
    assert train_reclora.main(["--config", str(path), "--set", "bank.targets=[q"]) == 1
    assert "bank.targets=[q" in capsys.readouterr().err


def test_a_base_model_that_does_not_fit_ends_the_job_before_its_first_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(tmp_path, {"run": {"root": str(tmp_path / "run")}})
    assert train_reclora.main(["--config", str(path), "--set", "prompt.positive=Definitely"]) == 1
    assert "'Definitely' is not one token" in capsys.readouterr().err
    assert train_reclora.main(["--config", str(path), "--set", "bank.targets=[qkv_proj]"]) == 1
    assert "qkv_proj" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_relative_paths_start_from_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(tmp_path, {"run": {"root": "runs/x", "registry": "s3://bucket/releases"}})
    monkeypatch.setenv("LIFELORA_HOME", "/data/home")
    config = load_config(str(path))
    assert config.run.root == "/data/home/runs/x"
    assert config.run.registry == "s3://bucket/releases"
    assert config.source.path == "/data/home/cache/ml-100k"
    assert json.loads(json.dumps(config.settings())) == config.settings()
    monkeypatch.setenv("LIFELORA_HOME", str(tmp_path))
    (tmp_path / "models" / "own").mkdir(parents=True)
    for name, expected in {
        "models/own": str(tmp_path / "models/own"), "smollm2-135m-instruct": None, "org/model": None
    }.items():
        found = load_config(str(path), {"base_model.name": name}).base_model.name
        assert found == (expected or name)
