"""Fixtures of the whole suite: one local Ray, one S3 server on loopback, the real inputs.

The environment is set here, before anything imports ray, and is inherited by every Ray process.
"""

import logging
import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]

FIXED_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",                          # no test may download
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",                    # else ray.init() writes ~/.ray/auth_token
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_metrics_report_interval_ms": "2000",       # 10 s: tests wait for the next report
    "RAY_idle_worker_killing_time_threshold_ms": "30000",    # 1 s: each test starts its own anew
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",     # an actor for each training; no node leaves
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",     # how soon an end is seen; 2 s by default
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCHDYNAMO_DISABLE": "1",                     # DeepSpeed imports the compiler, uses none
}
os.environ.update(FIXED_ENVIRONMENT)
os.environ.pop("RAY_ADDRESS", None)                 # never somebody's running cluster
os.environ["PYTHONPATH"] = os.pathsep.join(         # Ray workers import `engine`, `jobs`, `tests`
    [str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])]
)

import hypothesis  # noqa: E402
import pytest  # noqa: E402

hypothesis.settings.register_profile("suite", deadline=None)    # no test fails by the clock
hypothesis.settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the local Ray; skip `gpu` where there is no accelerator."""
    for item in items:
        if "ray_local" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items and not _has_gpu():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs an accelerator"))


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Run moto's S3 server on loopback; its address is in AWS_ENDPOINT_URL until the end."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)      # one line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    yield os.environ["AWS_ENDPOINT_URL"]
    del os.environ["AWS_ENDPOINT_URL"]
    server.stop()


@pytest.fixture
def s3_root(s3_endpoint: str) -> Iterator[str]:
    """Return the URI of an empty bucket of its own."""
    import boto3

    bucket = f"test-{uuid.uuid4().hex}"
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    client.create_bucket(Bucket=bucket)
    yield f"s3://{bucket}"
    client.close()


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest) -> str:
    """Return an empty place for files: once a local folder, once a bucket."""
    if request.param == "local":
        return str(request.getfixturevalue("tmp_path"))
    return str(request.getfixturevalue("s3_root"))


@contextmanager
def _own_agent_port() -> Iterator[None]:
    """Start the next Ray with a free port for its agent; `ray.init` cannot say it.

    The default, 52365, belongs to any other Ray of this machine, and jobs go through the agent.
    """
    from ray._private import parameter

    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        own = partial(parameter.RayParams, dashboard_agent_listen_port=port)
        patch.setattr(parameter, "RayParams", own)
        yield


def _processes_of_ray() -> list[subprocess.Popen[bytes]]:
    """Return what `ray.init` has started."""
    from ray._private.worker import _global_node

    return [info.process for infos in _global_node.all_processes.values() for info in infos]


@pytest.fixture(scope="session")
def ray_local(s3_endpoint: str) -> Iterator[str]:
    """Run one local Ray (3 CPUs) for the whole session; return its dashboard's URL.

    The S3 server starts first, so that Ray's processes know its address.
    """
    import ray

    folder = tempfile.mkdtemp(prefix="ll", dir="/tmp")          # socket paths are limited
    with _own_agent_port():
        context = ray.init(
            address="local", num_cpus=3, num_gpus=0, object_store_memory=200 * 2**20,
            include_dashboard=True, dashboard_port=0, log_to_driver=False, _temp_dir=folder,
        )
    # As `ray start` does: a submitted job takes this address, else that of any Ray it finds first.
    Path(folder, "ray_current_cluster").write_text(context.address_info["gcs_address"])
    yield f"http://{context.dashboard_url}"
    processes = _processes_of_ray()
    ray.shutdown()
    for process in processes:                   # Ray itself waits for a second each
        process.wait(timeout=60)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_jobs(ray_local: str) -> Any:
    """Return a client of `ray_local`'s job server that is known to take jobs.

    The agent that starts jobs comes up some seconds after Ray, later on a busy machine.
    """
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(ray_local)
    for attempt in range(120):
        try:
            client.submit_job(entrypoint="true")
            return client
        except RuntimeError as error:
            if attempt == 119 or "No available agent" not in str(error):
                raise
            time.sleep(1)


@pytest.fixture(scope="session")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep a process group of this process alone; DeepSpeed takes no second one."""
    import torch.distributed as dist

    meeting = tmp_path_factory.mktemp("group") / "meet"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def one_process(process_group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a training loop run in this process, without Ray."""
    monkeypatch.setenv("LOCAL_RANK", "0")


@pytest.fixture(scope="session")
def ml_100k() -> str:
    """Return the folder of the real MovieLens-100K files."""
    return _fetched("cache/ml-100k")


@pytest.fixture(scope="session")
def smollm2() -> str:
    """Return the folder of the real base model."""
    return _fetched("cache/models/smollm2-135m-instruct")


def _fetched(folder: str) -> str:
    path = REPO / folder
    if not path.is_dir():
        pytest.fail(f"{path} is missing: run `make fetch` first")
    return str(path)
