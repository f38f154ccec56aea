"""The whole engine on a small sample: train, serve, ask; a day of events, a night, and ask again.

python jobs/demo.py --config jobs/configs/demo.yaml

Each user's newest events are held back from the training. They are posted over HTTP as if they
happened on the day after it, and the night learns them.
"""

import argparse
import json
import socket
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from engine.config import EngineConfig, load_config
from engine.errors import ConfigError, EngineError
from engine.storage import absolute
from jobs.exit_code import exit_code

SERVE_CONFIG = "serve_configs/local.yaml"
START_TIMEOUT_S = 300
NUM_USERS = 5
HELD_BACK = 5
"""Newest events of each user, which come on the day after the training."""
BATCH_EVENTS = 500
Event = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(description="Train on a sample, serve it, spend a night.")
    parser.add_argument("--config", default="jobs/configs/demo.yaml", help="YAML file of settings")
    options = parser.parse_args(arguments)
    return exit_code(lambda: demonstrate(load_config(options.config)))


def demonstrate(config: EngineConfig) -> None:
    """Train, seed the state, serve, ask some users of the sample, and show a day and its night."""
    import ray  # --help needs no Ray

    from engine import storage
    from jobs import seed_state, train_reclora
    from jobs.start import configure_logging, start_ray

    if config.run.state is None:
        raise ConfigError("run.state is null: the service and its nights need a database")
    configure_logging()
    dashboard = start_ray()
    try:
        base, day = hold_back(config)
        outcome = train_reclora.run(base)
        application = serve_config(base)
        seed_state.seed_histories(outcome.histories.uri, config.run.state)
        users = storage.read_json(outcome.scores.path("slates.json"))["user_ids"]
        with serving(dashboard, application) as url:
            print()
            train_reclora.describe(outcome)
            answers = [ask(url, user_id) for user_id in list(dict.fromkeys(users))[:NUM_USERS]]
            show_items(answers[0])
            show_mixes(answers)
            post_events(url, day)
            spend_night(base, dashboard, url)
            show_items(ask(url, answers[0]["user_id"]))
    finally:
        ray.shutdown()


def hold_back(config: EngineConfig) -> tuple[EngineConfig, list[Event]]:
    """Return settings of a training without each user's newest events, and these as the day after.
    """
    import pyarrow as pa  # --help needs none of these
    import pyarrow.compute as pc

    from engine import artifacts, storage
    from engine.stages.collected import source_of, write_source
    from engine.stages.interactions import import_data

    root = storage.join(config.run.root, "source")      # not an output that a night may delete
    whole = import_data(root, config)
    events = pa.concat_tables(map(storage.read_table, whole.files("interactions/")))
    events = events.sort_by([(name, "ascending") for name in ("timestamp_s", "user_id", "item_id")])
    ages = events.to_pandas().groupby("user_id").cumcount(ascending=False)      # 0: the newest
    is_newest = pa.array(ages < HELD_BACK)
    before = events.filter(pc.invert(is_newest))

    def write(uri: str) -> dict[str, Any]:
        tables = [storage.read_table(whole.path(f"{name}.parquet")) for name in ("items", "users")]
        write_source(uri, before, *tables)
        return {"events": len(before)}

    base = artifacts.make(root, "base", {"held_back": HELD_BACK}, [whole], write)
    source = source_of(config.source, base.uri)
    end_s = before["timestamp_s"].to_numpy().max()
    day = next_day(events.filter(is_newest).to_pylist(), int(end_s) + 1)
    return config.model_copy(update={"source": source}), day


def next_day(rows: Sequence[dict[str, Any]], start_s: int) -> list[Event]:
    """Return rows of INTERACTIONS as events of the next hours, a second after one another. They are
    the same whenever this runs, so a second demo posts nothing new.
    """
    return [
        {
            "event_id": f"demo-{row['user_id']}-{row['item_id']}", "user_id": row["user_id"],
            "item_id": row["item_id"], "rating": row["rating"], "timestamp_s": start_s + number,
        }
        for number, row in enumerate(rows)
    ]


def serve_config(config: EngineConfig) -> dict[str, Any]:
    """Return serve_configs/local.yaml for this run's registry and database, on a free port."""
    settings: dict[str, Any] = yaml.safe_load(Path(SERVE_CONFIG).read_text())
    settings["http_options"]["port"] = free_port(settings["http_options"]["port"])
    settings["applications"][0]["args"]["database_url"] = config.run.state
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


@contextmanager
def serving(dashboard: str, settings: dict[str, Any]) -> Iterator[str]:
    """Deploy, wait until it is ready, and yield its URL; end it after the block."""
    from ray import serve
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    url = f"http://127.0.0.1:{settings['http_options']['port']}"
    try:
        ServeSubmissionClient(dashboard).deploy_applications(settings)
        print(f"serving on {url}")
        wait_until_ready(url)
        yield url
    finally:
        serve.shutdown()


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


def ask(url: str, user_id: str) -> dict[str, Any]:
    """Return the answer to a user, with the user's id."""
    body = {"user_id": user_id, "k": 5, "explain": True}
    return {"user_id": user_id, **post(f"{url}/v1/recommend", body)}


def post_events(url: str, events: Sequence[Event]) -> None:
    """Post events in batches, and say what became of them."""
    became: Counter[str] = Counter()
    for start in range(0, len(events), BATCH_EVENTS):
        answer = post(f"{url}/v1/events", {"events": events[start : start + BATCH_EVENTS]})
        became.update(event["status"] for event in answer["events"])
    counts = ", ".join(f"{number} {status}" for status, number in became.items())
    print(f"\nposted {len(events)} events of a day: {counts}")


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return what a POST request answers."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def spend_night(config: EngineConfig, dashboard: str, url: str) -> None:
    """Learn the day beside the application, by trainings of one CPU, as it holds a part of the
    others; and let it know of a new live release.
    """
    from engine.state.histories import COMMIT_MARGIN_S
    from jobs import nightly_update, promote

    print(f"in {COMMIT_MARGIN_S} s the night knows that no event is still on its way")
    time.sleep(COMMIT_MARGIN_S + 1)
    one = {"num_workers": 1, "threads_per_worker": 1}
    ended = nightly_update.run(config.model_copy(update={
        "crm": config.crm.model_copy(update=one),
        "adapters": config.adapters.model_copy(update=one),
    }))
    nightly_update.describe(ended)
    print(f"all nights: {absolute(config.run.root)}/nights.html")
    if ended.kind == "promoted":
        options = argparse.Namespace(address=dashboard, endpoint=url, timeout_s=START_TIMEOUT_S)
        promote.tell(options, ended.release_id, hint=f"promote {ended.release_id!r}")


def show_items(answer: dict[str, Any]) -> None:
    """Print a user's items and the release that chose them."""
    print(f"\nuser {answer['user_id']}, release {answer['release_id']}, mode {answer['mode']}")
    print("recently: " + "; ".join(event["title"] for event in answer["history"]["newest"][:5]))
    for place, item in enumerate(answer["items"], start=1):
        llm = "-" if item["llm_score"] is None else f"{item['llm_score']:+.2f}"
        print(
            f"{place:3d}. {item['title']:<45.45} score {item['score']:.3f}  "
            f"CRM {item['crm_score']:+.2f}  LLM {llm}"
        )


def show_mixes(answers: Sequence[dict[str, Any]]) -> None:
    """Print the mix of every user."""
    print("adapter mix by user (share of each meta-LoRA):")
    for answer in answers:
        mix = " ".join(f"{weight:.2f}" for weight in answer["explanation"]["gate_weights"])
        print(f"  user {answer['user_id']:>6}: {mix}")


if __name__ == "__main__":
    sys.exit(main())
