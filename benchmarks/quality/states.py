"""Where the frozen base model's states tell the candidates of a slate apart.

python -m benchmarks.quality.states --plan benchmarks/quality/ml-100k.yaml [--out FOLDER]

Linear models learn to order the bank's slates from the state at the answer token, and from the mean
state of the candidate's own tokens, and are measured on validation for several L2 penalties, alone
and fused with the CRM by weights fitted on these very rows: such models find at most so much that
the CRM does not know. No training of the language model; the result is <out>/states.json.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.quality.plan import read_plan, results_folder
from engine.types import FloatArray, Window
from jobs.exit_code import exit_code

INVERSE_PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
BATCH = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return the exit code."""
    parser = argparse.ArgumentParser(description="Probe the states of the frozen base model.")
    parser.add_argument("--plan", required=True, help="YAML file of benchmarks/quality")
    parser.add_argument("--out", help="folder of the results; benchmarks/results/quality/<plan>")
    return exit_code(run, parser.parse_args(arguments))


def run(options: argparse.Namespace) -> None:
    """Write the file and print its figures."""
    from benchmarks.quality.training import Bench
    from benchmarks.race import circumstances, write_result
    from jobs.start import configure_logging, start_ray

    configure_logging()
    start_ray()
    source = circumstances()
    found = measure(Bench(read_plan(options.plan)))
    command = " ".join(["python -m benchmarks.quality.states", *sys.argv[1:]])
    write_result({"command": command, **source, **found},
                 results_folder(options.plan, options.out) / "states.json")
    for name, by_penalty in found["states"].items():
        for inverse, aucs in by_penalty.items():
            print(f"{name:<8} C = {inverse:<8}", *(
                f"{model} {metric} {auc:.4f}" for model, each in aucs.items()
                for metric, auc in each.items()
            ))


def measure(bench: Any) -> dict[str, Any]:
    """Return the JSON: labels, validation rows, the CRM's AUCs, and those by state and penalty."""
    from engine.training.adapter_examples import read_examples
    from engine.training.adapter_loop import build_model

    config, prompts, states = bench.inputs(bench.plan.rows[0])
    files = prompts.files("prompts/"), states.scores.files("scores/")
    learned, asked = (
        read_examples(*files, [window]) for window in (Window.BANK, Window.VALIDATION)
    )
    model = build_model(config, learned[0]).eval()
    learned_rows, asked_rows = read_states(model, learned), read_states(model, asked)
    return {
        "labels": len(learned_rows["labels"]), "num_rows": len(asked_rows["labels"]),
        "tokens": sum(each.num_tokens for each in (*learned, *asked)),
        "crm": aucs_of(asked_rows, asked_rows["crm"]),
        "states": {
            name: {f"{inverse:g}": judge(asked_rows, order(learned_rows, asked_rows, name, inverse))
                   for inverse in INVERSE_PENALTIES}
            for name in ("answer", "block")
        },
    }


def order(
    learned: Mapping[str, Any], asked: Mapping[str, Any], name: str, inverse: float
) -> FloatArray:
    """Return what the linear model on one kind of state says of the rows that are asked, [N]."""
    from benchmarks.quality.probe import fit_order, pairs_within

    firsts, seconds = pairs_within(learned["slates"], learned["labels"])
    gaps_PD = learned[name][firsts] - learned[name][seconds]
    scale_D = gaps_PD.std(axis=0) + 1e-6
    scores_N: FloatArray = (asked[name] / scale_D) @ fit_order(gaps_PD / scale_D, inverse)
    return scores_N


def judge(asked: Mapping[str, Any], scores_N: FloatArray) -> dict[str, dict[str, float]]:
    """Return the AUCs of scores, "alone" and "fused" with the CRM."""
    from engine.models.fusion import Fusion

    fusion = Fusion.fit(asked["crm"], scores_N, asked["labels"])
    return {
        "alone": aucs_of(asked, scores_N),
        "fused": aucs_of(asked, fusion.combine(asked["crm"], scores_N)),
    }


def aucs_of(asked: Mapping[str, Any], scores_N: FloatArray) -> dict[str, float]:
    """Return AUC, per-user AUC and AUC within a slate."""
    from engine.metrics import ctr

    rows = ctr.Rows.of(asked["users"], asked["labels"], asked["slates"])
    found = ctr.measure(rows, scores_N, num_draws=1, seed=0)
    return {metric: float(found[metric].value) for metric in ctr.AUCS}


def read_states(model: Any, examples: Sequence[Any]) -> dict[str, Any]:
    """Return states [N, D] by kind, the CRM's logits, labels, users and slates of all candidates.
    """
    parts = list(_batches(model, sorted(examples, key=lambda each: each.num_tokens)))
    return {
        **{name: np.concatenate([part[name] for part in parts])
           for name in ("answer", "block", "crm", "labels", "users")},
        "slates": np.unique(
            np.concatenate([part["slate_ids"] for part in parts]), return_inverse=True
        )[1],
    }


def _batches(model: Any, examples: Sequence[Any]) -> Iterator[dict[str, Any]]:
    import torch  # --help needs no torch

    from engine.models.packing import pack
    from engine.models.readout import block_means

    for start in range(0, len(examples), BATCH):
        chosen = examples[start : start + BATCH]
        batch = pack([each.prompt for each in chosen], pad_id=model.pad_id, device=model.device)
        with torch.inference_mode():
            hidden_BTD = model.hidden_states(batch, None).float()
        slots = batch.answers_BM.shape[1]
        kinds = {
            "answer": model.answer_states(hidden_BTD, batch),
            "block": block_means(hidden_BTD, batch.segments_BT, slots),
        }
        states: dict[str, FloatArray] = {
            name: each[batch.is_candidate_BM].double().cpu().numpy() for name, each in kinds.items()
        }
        sizes = [len(each.labels) for each in chosen]
        yield {
            **states, "crm": np.concatenate([each.crm.logits_M for each in chosen]).astype(float),
            "labels": np.concatenate([each.labels for each in chosen]),
            "users": np.repeat([each.user_id for each in chosen], sizes),
            "slate_ids": np.repeat([each.slate_id for each in chosen], sizes),
        }


if __name__ == "__main__":
    sys.exit(main())
