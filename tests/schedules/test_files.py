"""The schedules' commands are commands of the job and of Ray, and their settings agree."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.dashboard.modules.job.cli import submit

from engine.config import EngineConfig
from engine.state.database import open_database
from engine.state.leases import leased
from jobs import nightly_update
from tests.schedules import files

NAMES = ("nightly_update.py", "jobs/nightly_update.py", "jobs.nightly_update")
GUIDE = files.REPO / "docs" / "cluster.md"

# The fields that KubeRay 1.6's API has at these places, as far as the manifest may use them.
CRON_JOB_FIELDS = {"schedule", "suspend", "jobTemplate"}
RAY_JOB_FIELDS = {
    "activeDeadlineSeconds", "backoffLimit", "entrypoint", "rayClusterSpec", "runtimeEnvYAML",
    "shutdownAfterJobFinishes", "submissionMode", "ttlSecondsAfterFinished",
}
CLUSTER_FIELDS = {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
HEAD_FIELDS = {"rayStartParams", "template"}
GROUP_FIELDS = {*HEAD_FIELDS, "groupName", "replicas", "minReplicas", "maxReplicas"}

EVERY_COMMAND = [
    pytest.param(words, id=f"{name}-{at}")
    for name, found in files.commands().items() for at, words in enumerate(found)
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with the configs that the commands name."""
    configs = tmp_path / "jobs/configs"
    configs.mkdir(parents=True)
    for path in (files.REPO / "jobs/configs").glob("*.yaml"):
        (configs / path.name).write_text(path.read_text())
    (block,) = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (configs / "cluster.yaml").write_text(block)
    config_map, _ = files.manifest()
    (tmp_path / "nightly.yaml").write_text(config_map["data"]["nightly.yaml"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _night(words: list[str], home: Path) -> list[str]:
    """Return the arguments of the job in a command."""
    (at,) = (at for at, word in enumerate(words) if word in NAMES)
    assert words[at - 1] == ("-m" if words[at] == "jobs.nightly_update" else "python")
    return [word.replace("/etc/lifelora", str(home)) for word in words[at + 1:]]


def test_every_file_runs_the_night() -> None:
    found = files.commands()
    assert {name: len(each) for name, each in found.items()} == {
        "crontab": 2, "lifelora-nightly.service": 2, "airflow_dag.py": 1, "raycronjob.yaml": 1,
        "schedules.md": 2,
    }


@pytest.mark.parametrize("words", EVERY_COMMAND)
def test_the_job_takes_the_options_and_the_config(
    words: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_ledger = ["--set", "run.state=null"]        # the job reads all, then refuses
    assert nightly_update.main([*_night(words, home), *without_ledger]) == 1
    assert capsys.readouterr().err.startswith("error: run.state is null")


@pytest.mark.parametrize("words", EVERY_COMMAND)
def test_ray_takes_the_options_of_a_submission(words: list[str]) -> None:
    if Path(words[0]).name != "ray":
        return
    at = words.index("--")
    assert words[1:3] == ["job", "submit"]
    taken = submit.make_context("submit", words[3:at] + words[at:]).params
    assert taken["address"] == "http://127.0.0.1:8265"
    assert taken["working_dir"] == "."
    assert list(taken["entrypoint"]) == words[at + 1:]
    assert not taken["no_wait"]                 # whoever started it hears how it ended


def test_all_start_at_one_time_of_day() -> None:
    _, cron_job = files.manifest()
    schedules = {line.schedule for line in files.cron_lines()} | {cron_job["spec"]["schedule"]}
    assert schedules == {"15 2 * * *"}
    assert 'schedule="15 2 * * *"' in files.DAG.read_text()
    assert files.unit(files.TIMER)["Timer.OnCalendar"] == ["*-*-* 02:15:00"]


def test_a_second_night_leaves_with_a_message(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{home}/state.db"
    database, registry = open_database(url), f"{home}/releases"
    with leased(database, nightly_update.LEASE, "the first night"):
        assert nightly_update.main([
            "--config", "jobs/configs/ml-100k.yaml", "--set", f"run.state={url}",
            "--set", f"run.registry={registry}",
        ]) == 1
    database.dispose()
    message = capsys.readouterr().err
    assert "is held by 'the first night' until" in message


def test_a_crontab_has_no_comment_behind_a_value() -> None:
    for line in files.CRONTAB.read_text().splitlines():
        assert line.startswith("#") or "#" not in line
        assert "%" not in line or line.startswith("#")


def test_kuberay_knows_the_fields() -> None:
    config_map, cron_job = files.manifest()
    assert (cron_job["apiVersion"], cron_job["kind"]) == ("ray.io/v1", "RayCronJob")
    assert set(cron_job["spec"]) <= CRON_JOB_FIELDS
    ray_job = cron_job["spec"]["jobTemplate"]
    assert set(ray_job) <= RAY_JOB_FIELDS
    cluster = ray_job["rayClusterSpec"]
    assert set(cluster) <= CLUSTER_FIELDS
    assert set(cluster["headGroupSpec"]) <= HEAD_FIELDS
    for group in cluster["workerGroupSpecs"]:
        assert set(group) == GROUP_FIELDS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert config_map["kind"] == "ConfigMap"


def test_a_night_on_kubernetes_ends_before_the_next_one_and_leaves_no_cluster() -> None:
    _, cron_job = files.manifest()
    ray_job = cron_job["spec"]["jobTemplate"]
    assert cron_job["spec"]["suspend"] is False
    assert 0 < ray_job["activeDeadlineSeconds"] < 24 * 3600
    assert ray_job["shutdownAfterJobFinishes"] is True      # ttlSecondsAfterFinished needs it
    assert ray_job["backoffLimit"] >= 2         # the first may still meet the lease


def _containers() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return pod and Ray container of the head and of every group."""
    _, cron_job = files.manifest()
    cluster = cron_job["spec"]["jobTemplate"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    return [(pod, pod["containers"][0]) for pod in pods]


def test_every_pod_has_the_image_the_config_and_the_password() -> None:
    project = tomllib.loads((files.REPO / "pyproject.toml").read_text())["project"]
    config_map, cron_job = files.manifest()
    for pod, container in _containers():
        assert container["image"].endswith(f"/lifelora:{project['version']}")
        (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
        assert mount == {"name": volume["name"], "mountPath": "/etc/lifelora"}
        assert volume["configMap"]["name"] == config_map["metadata"]["name"]
        assert any(each["name"] == "PGPASSWORD" for each in container["env"])
    assert cron_job["spec"]["jobTemplate"]["rayClusterSpec"]["rayVersion"] == version("ray")


def test_the_workers_have_the_cores_that_training_asks_for() -> None:
    config_map, cron_job = files.manifest()
    config = EngineConfig.model_validate(yaml.safe_load(config_map["data"]["nightly.yaml"]))
    (group,) = cron_job["spec"]["jobTemplate"]["rayClusterSpec"]["workerGroupSpecs"]
    cores = int(_containers()[1][1]["resources"]["limits"]["cpu"])
    for training in (config.crm, config.adapters):
        assert training.num_workers <= group["replicas"]
        assert training.threads_per_worker < cores      # a core is left for Ray Data
