"""What a setting does to the bank's training, on validation alone: one training for each try.

python -m benchmarks.quality.tuning --plan benchmarks/quality/ml-100k.yaml [--row bank-user]
    [--rate 0.5] [--set adapters.batch_slates=2] [--set adapters.loss=pairs]

A try is a file <results>/tuning/<row>-<key of the bank>-<dtype>.json; the test window is not read.
"fused" is the language model with the CRM, two weights and a bias fitted on the same rows. Beside
them stand CRM, popularity and the models of probe.py, which know the item alone and learn from the
language model's own labels: what they order, it could order, too.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.quality.plan import read_plan, results_folder
from benchmarks.quality.rows import ROWS
from jobs.exit_code import exit_code
from jobs.train_reclora import read_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one try; return the exit code."""
    parser = argparse.ArgumentParser(description="Try settings of the bank's training.")
    parser.add_argument("--plan", required=True, help="YAML file of benchmarks/quality")
    parser.add_argument("--row", default="bank-user", choices=ROWS, metavar="ROW",
                        help="row of rows.py that is changed")
    parser.add_argument("--rate", type=float, default=1.0, help="multiple of the learning rates")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                        help="one setting by its dotted name (repeatable)")
    parser.add_argument("--out", help="folder of the results; benchmarks/results/quality/<plan>")
    options = parser.parse_args(arguments)
    return exit_code(run, options)


def run(options: argparse.Namespace) -> None:
    """Train, score validation, write the file and print its metrics."""
    plan, changes = read_plan(options.plan), read_settings(options.set)
    tried = {"row": options.row, "rate": options.rate, "settings": changes}
    from benchmarks.quality.training import Bench  # --help needs neither torch nor Ray
    from benchmarks.race import circumstances, write_result
    from jobs.start import configure_logging, start_ray

    configure_logging()
    start_ray()
    source = circumstances()
    found = measure(Bench(plan), options.row, options.rate, changes)
    command = " ".join(["python -m benchmarks.quality.tuning", *sys.argv[1:]])
    folder = results_folder(options.plan, options.out) / "tuning"
    name = f"{options.row}-{found['bank']}-{found['recipe']['dtype']}.json"
    write_result({"command": command, **source, **tried, **found}, folder / name)
    for name, metrics in found["validation"].items():
        print(f"{name:<16}", *(f"{metric} {metrics[metric]['value']:.4f}"
                               for metric in metrics))


def measure(bench: Any, row: str, rate: float, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON of one try: cost, learning curve, metrics of every model on validation."""
    from benchmarks.quality.probe import Probe
    from benchmarks.quality.training import training_of
    from engine.metrics import ctr
    from engine.models.fusion import Fusion
    from engine.stages.adapters import read_learning
    from engine.stages.comparison import as_json, model_logits
    from engine.stages.score_rows import read_sample, sample_keys
    from engine.types import Window

    prompts, bank, scores = bench.validate(row, rate, changes)
    sample = read_sample(scores, Window.VALIDATION)
    items = sample_keys(scores, Window.VALIDATION)["item"]
    probe = Probe.read(bench.ground, prompts)
    crm, llm = sample.scores["crm_logit"], sample.scores["llm_logit"]
    models = model_logits(sample, Fusion.fit(crm, llm, sample.rows.labels_N))
    logits = {
        **{name: models[name] for name in ("llm", "fused", "crm", "popularity")},
        "vectors": probe.by_vectors()[items], "rates": probe.by_rates()[items],
    }
    config, manifest = bench.config, bank.manifest()
    return {
        "bank": bank.key,
        **training_of(bench.plan.row_config(ROWS[row], rate, changes), manifest),
        "num_rows": len(sample.rows), "num_users": sample.rows.num_users,
        "labels": len(probe.labels_N), "tokens": bank.facts["training_tokens"],
        "steps": bank.facts["steps"], "seconds": manifest["seconds"],
        "final_loss": bank.facts["final_loss"], "learning": read_learning(bank.uri),
        "validation": {
            name: {
                metric: as_json(each.interval()) for metric, each in ctr.measure(
                    sample.rows, values, num_draws=config.evaluation.bootstrap_draws,
                    seed=config.run.seed,
                ).items() if metric in ctr.AUCS
            }
            for name, values in logits.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
