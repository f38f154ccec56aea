"""The engine's log lines among Serve's: same file, form, level and request id."""

import logging

SERVE = logging.getLogger("ray.serve")


class _ToServe(logging.Handler):
    """Hands records to Serve's logger, whose handlers change with its config."""

    def emit(self, record: logging.LogRecord) -> None:
        if SERVE.isEnabledFor(record.levelno):
            SERVE.handle(record)


def log_with_serve() -> None:
    """Send what this replica logs where Serve's own lines go; to repeat it changes nothing."""
    engine = logging.getLogger("engine")
    engine.propagate = False            # else warnings would stand in the worker's stderr, too
    engine.setLevel(logging.DEBUG)      # Serve's level decides
    engine.handlers = [_ToServe()]
