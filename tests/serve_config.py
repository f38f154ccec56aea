"""serve_configs/local.yaml as tests need it."""

from pathlib import Path
from typing import Any

import yaml

LOCAL = Path(__file__).resolve().parents[1] / "serve_configs/local.yaml"


def local_serve_config(registry: str, **arguments: Any) -> dict[str, Any]:
    """Return it following a registry, with these arguments of its application."""
    config: dict[str, Any] = yaml.safe_load(LOCAL.read_text())
    [application] = config["applications"]
    application["args"] |= arguments
    for deployment in application["deployments"]:
        if "user_config" in deployment:
            deployment["user_config"] = {"registry": registry, "change": 1}
    return config
