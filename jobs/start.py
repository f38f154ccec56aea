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


def start_ray() -> None:
    """Connect to the cluster of this job or machine; without one, start a local Ray.

    `ray.init()` finds a submitted job's cluster by itself. Nothing happens if Ray runs already.
    """
    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
