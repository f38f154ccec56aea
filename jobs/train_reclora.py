"""The main job: raw logs -> histories -> CRM -> prompts -> bank and gates -> release -> report.

python jobs/train_reclora.py --config jobs/configs/ml-100k.yaml [--set run.seed=3 ...]

Every stage's output is reused if its settings and inputs are the same, so a job that was stopped
goes on where it was.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from engine.artifacts import Artifact
from engine.config import EngineConfig, load_config
from engine.errors import ConfigError
from jobs.exit_code import exit_code


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run leaves."""

    release_id: str
    release: str
    """URI of the release's folder."""
    histories: Artifact
    scores: Artifact
    evaluation: Artifact
    report: Artifact


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; return the exit code."""
    parser = argparse.ArgumentParser(description="Train, evaluate and publish one release.")
    parser.add_argument("--config", required=True, help="YAML file of settings")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE",
        help="one setting by its dotted name, e.g. run.seed=3 (repeatable)",
    )
    options = parser.parse_args(arguments)
    return exit_code(
        lambda: describe(run(load_config(options.config, read_settings(options.set))))
    )


def read_settings(pairs: Sequence[str]) -> dict[str, object]:
    """Return dotted names with their YAML values."""
    found = {}
    for name, _, value in (pair.partition("=") for pair in pairs):
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {name}={value}: not a YAML value: {error}") from error
    return found


def run(config: EngineConfig) -> Outcome:
    """Run every stage in order."""
    from engine import storage  # --help needs neither torch nor Ray
    from engine.models.personalized import check_base_model
    from engine.releases.registry import Registry
    from engine.stages.adapters import train_adapters
    from engine.stages.crm import score_crm, train_crm
    from engine.stages.crm_seeds import train_crm_seeds
    from engine.stages.evaluation import evaluate, fit_fusion
    from engine.stages.histories import build_histories
    from engine.stages.interactions import import_data
    from engine.stages.items import embed_items
    from engine.stages.popularity import count_popularity
    from engine.stages.prompts import build_prompts
    from engine.stages.release import Parts, publish_release
    from engine.stages.report import write_report
    from engine.stages.retrieval import measure_recall
    from engine.stages.scores import score_prompts
    from engine.stages.slates import build_slates
    from jobs.start import configure_logging, start_ray

    configure_logging()
    check_base_model(config.base_model, config.prompt, config.bank)
    start_ray()
    root = storage.absolute(config.run.root)

    interactions = import_data(root, config)
    histories = build_histories(root, config, interactions)
    slates = build_slates(root, config, histories)
    popularity = count_popularity(root, config, histories)
    item_text = embed_items(root, config, histories)
    crm = train_crm(root, config, histories, slates, item_text)
    crm_scores = score_crm(root, config, histories, slates, item_text, crm)
    recall = measure_recall(root, config, histories, slates, item_text, crm, popularity)
    prompts = build_prompts(root, config, histories, slates, item_text)
    bank = train_adapters(root, config, prompts, crm, crm_scores)
    scores = score_prompts(root, config, slates, prompts, crm_scores, bank, popularity)
    fusion = fit_fusion(root, config, scores)
    seeds = train_crm_seeds(root, config, histories, slates, item_text)
    evaluation = evaluate(
        root, config, scores, fusion,
        recall={name: recall.facts[name] for name in ("crm", "popularity")},
        crm_seeds=seeds,
    )
    parts = Parts(histories, item_text, crm, bank, popularity, fusion, evaluation)
    release_id = publish_release(root, config, parts)
    registry = Registry(config.run.registry)
    if config.run.promote:
        registry.promote(release_id)
    report = write_report(root, config, [
        interactions, histories, slates, popularity, item_text, crm, crm_scores, recall, prompts,
        bank, scores, fusion, evaluation,
    ])
    return Outcome(release_id, registry.folder(release_id), histories, scores, evaluation, report)


def describe(outcome: Outcome) -> None:
    """Print the figures that matter and where everything is."""
    from engine import storage
    from engine.stages.quality import summary_lines

    for line in summary_lines(storage.read_json(outcome.evaluation.path("report.json"))):
        print(line)
    print(f"release: {outcome.release_id} in {outcome.release}")
    print(f"report: {outcome.report.path('index.html')}")


if __name__ == "__main__":
    sys.exit(main())
