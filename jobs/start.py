"""What every job does first: logging, and a Ray to run on."""

import logging
import os

import ray
from ray.data import DataContext

OWN_RAY = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",             # this machine stays
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",            # how soon an end is seen; else 2
    "RAY_idle_worker_killing_time_threshold_ms": "30000",   # else 1 s: each stage imports anew
}
"""Environment of a Ray that a job starts for itself; what is set already stays."""


def configure_logging() -> None:
    """Print the engine's own log lines; Ray's and other libraries' only from WARNING."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("engine").setLevel(logging.INFO)
    logging.getLogger("jobs").setLevel(logging.INFO)


def start_ray() -> str:
    """Connect to the cluster of this job or machine, or start one; return its dashboard URL.

    `ray.init()` finds a submitted job's cluster by itself. If Ray runs in this process already,
    nothing happens and the URL is empty.
    """
    address = ""
    if not ray.is_initialized():
        if "RAY_ADDRESS" not in os.environ:
            for name, value in OWN_RAY.items():
                os.environ.setdefault(name, value)
        context = ray.init(logging_level=logging.WARNING, log_to_driver=False)
        address = f"http://{context.dashboard_url}"
    data = DataContext.get_current()
    data.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    return address
