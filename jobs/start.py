"""What every job does first: logging, and a Ray to run on."""

import logging

import ray
from ray.data import DataContext


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
        context = ray.init(logging_level=logging.WARNING, log_to_driver=False)
        address = f"http://{context.dashboard_url}"
    data = DataContext.get_current()
    data.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    return address
