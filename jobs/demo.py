"""The whole engine on a small sample: train, publish, serve, ask; prints one user's answer.

python jobs/demo.py --config jobs/configs/demo.yaml
"""

import argparse
import json
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from engine.config import EngineConfig, load_config
from engine.errors import EngineError
from engine.storage import absolute
from jobs.exit_code import exit_code

SERVE_CONFIG = "serve_configs/local.yaml"
START_TIMEOUT_S = 300
NUM_USERS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(description="Train on a sample, serve it and ask.")
    parser.add_argument("--config", default="jobs/configs/demo.yaml", help="YAML file of settings")
    options = parser.parse_args(arguments)
    return exit_code(lambda: demonstrate(load_config(options.config)))


def demonstrate(config: EngineConfig) -> None:
    """Train, seed the state, serve, ask for some users of the sample, print."""
    import ray  # --help needs no Ray

    from engine import storage
    from jobs import seed_state, train_reclora
    from jobs.start import configure_logging, start_ray

    configure_logging()
    dashboard = start_ray()
    try:
        outcome = train_reclora.run(config)
        application = serve_config(config)
        seed_state.seed_histories(
            outcome.histories.uri, application["applications"][0]["args"]["database_url"]
        )
        users = storage.read_json(outcome.scores.path("slates.json"))["user_ids"]
        answers = serve_and_ask(dashboard, application, list(dict.fromkeys(users))[:NUM_USERS])
    finally:
        ray.shutdown()
    print()
    train_reclora.describe(outcome)
    show(answers)


def serve_config(config: EngineConfig) -> dict[str, Any]:
    """Return serve_configs/local.yaml for this run's registry, on a port that is free."""
    settings: dict[str, Any] = yaml.safe_load(Path(SERVE_CONFIG).read_text())
    settings["http_options"]["port"] = free_port(settings["http_options"]["port"])
    for deployment in settings["applications"][0]["deployments"]:
        if "user_config" in deployment:
            registry = absolute(config.run.registry)
            deployment["user_config"] = {**deployment["user_config"], "registry": registry}
    return settings


def free_port(wanted: int) -> int:
    """Return the port if nobody listens there, else any free one."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise EngineError("no free port on 127.0.0.1")


def serve_and_ask(
    dashboard: str, settings: dict[str, Any], user_ids: Sequence[str]
) -> list[dict[str, Any]]:
    """Deploy, wait until it is ready, and return the answer to each user."""
    from ray import serve
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    url = f"http://127.0.0.1:{settings['http_options']['port']}"
    ServeSubmissionClient(dashboard).deploy_applications(settings)
    print(f"serving on {url}")
    wait_until_ready(url)
    answers = [
        {"user_id": user_id, **ask(url, {"user_id": user_id, "k": 5, "explain": True})}
        for user_id in user_ids
    ]
    serve.shutdown()
    return answers


def wait_until_ready(url: str) -> None:
    """Wait until every replica holds the live release."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=10) as answer:
                if json.load(answer)["is_ready"]:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        time.sleep(1)
    raise EngineError(f"{url}/readyz was not ready within {START_TIMEOUT_S} s")


def ask(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of POST /v1/recommend."""
    request = urllib.request.Request(
        f"{url}/v1/recommend", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def show(answers: Sequence[dict[str, Any]]) -> None:
    """Print the first user's items, and the mix of every user."""
    first = answers[0]
    print(f"\nuser {first['user_id']}, release {first['release_id']}, mode {first['mode']}")
    print("recently: " + "; ".join(event["title"] for event in first["history"]["newest"][:5]))
    for place, item in enumerate(first["items"], start=1):
        llm = "-" if item["llm_score"] is None else f"{item['llm_score']:+.2f}"
        print(
            f"{place:3d}. {item['title']:<45.45} score {item['score']:.3f}  "
            f"CRM {item['crm_score']:+.2f}  LLM {llm}"
        )
    print("adapter mix by user (share of each meta-LoRA):")
    for answer in answers:
        mix = " ".join(f"{weight:.2f}" for weight in answer["explanation"]["gate_weights"])
        print(f"  user {answer['user_id']:>6}: {mix}")


if __name__ == "__main__":
    sys.exit(main())
