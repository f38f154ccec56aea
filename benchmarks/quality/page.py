"""Result files -> docs/results.md.

python -m benchmarks.quality.page [--quick RESULTS]

The prose is results.md.jinja beside this file; every figure comes from benchmarks/results. With
--quick the tables of the short form alone are printed, from the folder of its results.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.quality.plan import Plan, read_plan
from benchmarks.quality.rows import ROWS
from engine.metrics.ctr import AUCS, SHOWN
from engine.stages.page import MIN_USERS

HERE = Path(__file__).parent
RESULTS = Path("benchmarks/results/quality")
PAGE = Path("docs/results.md")
LISTS = {
    "full": "full recommender", "crm": "its CRM alone", "popular": "popularity",
    "history": "items of the history", "item-cf": "item-based CF (implicit)",
    "sasrec": "SASRec (RecTools)",
}
BY_ROW = ("auc", "gauc", "log_loss")
Json = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or print the short form."""
    parser = argparse.ArgumentParser(description="Result files -> tables.")
    parser.add_argument("--quick", metavar="RESULTS", help="print the short form of this folder")
    options = parser.parse_args(arguments)
    if options.quick:
        print(render("tables.md.jinja", {"quick": Path(options.quick)}))
        return 0
    names = [path.stem for path in sorted(HERE.glob("*.yaml")) if path.stem != "quick"]
    PAGE.write_text(render("results.md.jinja", {name: RESULTS / name for name in names}))
    print(f"wrote {PAGE}")
    return 0


def render(template: str, folders: Mapping[str, Path]) -> str:
    """Return a template with the results of some plans."""
    environment = Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )
    return environment.get_template(template).render(speed=Speed(RESULTS.parent), sets={
        name: DataSet(read_plan(str(HERE / f"{name}.yaml")), folder)
        for name, folder in folders.items()
    })


class Speed:
    """The results of the races, as tables in Markdown; None where one was not run."""

    def __init__(self, folder: Path) -> None:
        names = "adapter_training", "crm_training", "histories", "serving", "retrieval"
        paths = {name: folder / f"{name}.json" for name in names}
        self.results = {name: _read(path) for name, path in paths.items() if path.exists()}

    def adapters_table(self) -> str:
        """Return the bank against one LoRA, and slates against single candidates."""
        found = self.results["adapter_training"]
        parts = ("bank_against_lora", "peft_lora", "tokens"), (
            "slates_against_candidates", "candidates", "labels")
        return _table(("subject", "unit", "per CPU-second", "ratio", "range", "to"), [
            (name, unit, f"{each[f'{unit}_per_cpu_s']:,.1f}", f"{each[f'ratio_to_{against}']:.2f}",
             _range(each), against)
            for part, against, unit in parts for name, each in found[part].items()
        ])

    def crm_table(self) -> str:
        """Return rows per CPU-second of our CRM and of the peers at each length."""
        found = self.results["crm_training"]["against_peers"]
        return _table(("events behind a candidate", "model", "rows per CPU-second",
                       "ratio to SDIM", "range"), [
            (f"{int(length):,}", name, f"{each['rows_per_cpu_s']:,.0f}",
             f"{each['ratio_to_SDIM']:.2f}", _range(each))
            for length, subjects in found.items() for name, each in subjects.items()
        ])

    def curve_table(self) -> str:
        """Return our cost of a row over the length of the history."""
        found = self.results["crm_training"]["curve"]
        first = next(iter(found))
        return _table(("events", "rows per CPU-second", f"cost of a row, {first} events = 1"), [
            (f"{int(length):,}", f"{each['rows_per_cpu_s']:,.0f}",
             f"{1 / each[f'ratio_to_{first}']:.2f}")
            for length, each in found.items()
        ])

    def histories_table(self) -> str:
        """Return rates and memory of import and histories."""
        found = self.results["histories"]["sizes"]
        head = ("interactions", "users", "longest history", "partitions", "interactions/s",
                "peak memory, MiB", "of it before the stages")
        return _table(head, [
            (f"{int(size):,}", f"{each['users']:,}", f"{each['longest']:,}",
             str(each["partitions"]), f"{each['interactions_per_s']:,.0f}",
             f"{each['total_mib']:,.0f}", f"{each['idle_mib']:,.0f}")
            for size, each in found.items()
        ])

    def mixes_table(self) -> str:
        """Return users with a mix each against the bare model, and PEFT's two ways."""
        found = {name: each for name, each in self.results["serving"]["mixes"].items()
                 if isinstance(each, dict)}
        head = "subject", "prompts per CPU-second", "prompts per second", "ratio to bare", "range"
        return _table(head, [
            (name, f"{each['prompts_per_cpu_s']:.2f}", f"{each['prompts_per_wall_s']:.2f}",
             f"{each['ratio_to_bare']:.2f}", _range(each))
            for name, each in found.items()
        ])

    def candidates_table(self) -> str:
        """Return candidates behind one prefix against prompts of their own."""
        head = ("candidates", "prompts of their own, per CPU-second", "behind one prefix", "ratio",
                "range", "ratio of tokens", "prefix kept", "ratio", "logits apart", "their spread")
        return _table(head, [
            (str(each["candidates"]), *(
                f"{each['alone']['candidates_per_cpu_s']:.2f}",
                f"{each['behind']['candidates_per_cpu_s']:.2f}",
                f"{each['behind']['ratio_to_alone']:.2f}", _range(each["behind"]),
                f"{each['token_ratio']:.2f}", f"{each['again']['candidates_per_cpu_s']:.2f}",
                f"{each['again']['ratio_to_alone']:.2f}", f"{each['largest_difference']:.3f}",
                f"{each['spread_of_logits']:.2f}",
            ))
            for each in self.results["serving"]["candidates"]
        ])

    def builds_table(self) -> str:
        """Return what an index of so many items costs when a release is loaded."""
        head = "vectors", "items", "CPU s to build", "index, MiB", "the vectors themselves, MiB"
        return _table(head, [
            (kind, f"{int(size):,}", f"{each['build_cpu_s']:.1f}", f"{each['index_mib']:.0f}",
             f"{each['vectors_mib']:.0f}")
            for kind, size, each in self._retrieval()
        ])

    def retrieval_table(self) -> str:
        """Return exact against approximate search under each filter."""
        head = ("vectors", "items", "filter", "exact, CPU ms", "faiss, CPU ms", "ratio", "range",
                "recall", "lowest of a request")
        return _table(head, [
            (kind, f"{int(size):,}", name, *(
                f"{1000 / each[subject]['requests_per_cpu_s']:.2f}"
                for subject in ("exact", "faiss")
            ), f"{each['faiss']['ratio_to_exact']:.1f}", _range(each["faiss"]),
             f"{each['recall']:.4f}", f"{each['lowest_recall']:.3f}")
            for kind, size, found in self._retrieval() for name, each in found["filters"].items()
        ])

    def _retrieval(self) -> Iterator[tuple[str, str, Json]]:
        found = self.results["retrieval"]
        for kind in ("generated", "trained"):
            yield from ((kind, size, each) for size, each in found.get(kind, {}).items())

    def source(self, name: str) -> str:
        """Return command and commit."""
        found = self.results[name]
        return f"`python -m benchmarks.{name} {found['command']}` at {found['commit']}"


def _range(each: Mapping[str, Any]) -> str:
    low, high = each["ratio_range"]
    return f"{low:.2f} to {high:.2f}"


class DataSet:
    """The result files of one plan, as tables in Markdown."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.title = plan.title
        self.rows = {name: _read_all(folder, name, plan.seeds) for name in plan.rows}
        self.rows = {name: found for name, found in self.rows.items() if found}
        self.references = {
            name: _read(folder / f"{name}.json") for name in plan.references
            if (folder / f"{name}.json").exists()
        }
        path = folder / "comparisons.json"
        self.comparisons: list[Json] = _read(path)["pairs"] if path.exists() else []

        self.tries = [_read(path) for path in sorted((folder / "tuning").glob("*.json"))]
        path = folder / "states.json"
        self.states: Json | None = _read(path) if path.exists() else None
        path = folder / "lists.json"
        self.lists: Json | None = _read(path) if path.exists() else None

    def rows_table(self) -> str:
        """Return cost and metrics of each trained row on the test sample, seeds averaged."""
        head = ("row", "seeds", "weights: bank + gates + readout", "rate", "tokens", "labels",
                "AUC", "per-user AUC", "AUC within a slate", "log loss", "fused AUC",
                "fused per-user AUC", "fused AUC within a slate")
        lines = []
        for name, runs in self.rows.items():
            size, cost = runs[0]["trainable_parameters"], runs[0]["training"]
            lines.append((
                ROWS[name].title, str(len(runs)),
                " + ".join(f"{size[part]:,}" for part in ("bank", "gates", "readout")
                           if size.get(part)),
                f"{runs[0]['rate']:g}", f"{cost['tokens']:,}", f"{cost['labels']:,}",
                *(_of_seeds(runs, "llm", metric) for metric in SHOWN),
                *(_of_seeds(runs, "fused", metric) for metric in AUCS),
            ))
        return _table(head, lines + self._base_lines())

    def _base_lines(self) -> list[tuple[str, ...]]:
        """Return what stands beside every row: no adapter, others' gates, CRM, popularity."""
        if "bank-user" not in self.rows:
            return []
        runs = self.rows["bank-user"]
        names = {"zero_shot": "base model, zero-shot", "shuffled": "bank, another user's gates",
                 "crm_calibrated": "CRM, calibrated", "popularity": "popularity"}
        return [
            (title, "", "", "", "", "",
             *(_of_seeds(runs, model, metric) for metric in SHOWN), "", "", "")
            for model, title in names.items()
        ]

    def comparisons_table(self) -> str:
        """Return every paired difference with its interval; bold where it excludes zero."""
        head = ("first", "second", "users", "rows", "seeds", "AUC", "per-user AUC",
                "AUC within a slate", "log loss")
        return _table(head, [
            (each["first"], each["second"], str(each["num_users"]), f"{each['num_rows']:,}",
             " / ".join(map(str, each["seeds"])),
             *(_interval(each["difference"].get(metric), "+") for metric in SHOWN))
            for each in self.comparisons
        ])

    def slices_table(self) -> str:
        """Return what each row adds to the CRM, by slice of enough users: the difference in AUC."""
        found = [each for each in self.comparisons if each.get("slices")]
        names = list(dict.fromkeys(
            name for each in found for name, part in each["slices"].items()
            if part["num_users"] >= MIN_USERS
        ))
        sizes = {
            name: next(f"{each['slices'][name]['num_rows']:,}" for each in found
                       if name in each["slices"])
            for name in names
        }
        head = ("slice", "rows", *(each["first"].removesuffix("/fused") for each in found))
        return _table(head, [
            (name, sizes[name], *(
                _interval(each["slices"][name]["difference"]["auc"], "+")
                if name in each["slices"] else "" for each in found
            )) for name in names
        ]) if found else ""

    def gates_table(self) -> str:
        """Return how the gates of each routed row mix and differ between users, seeds averaged."""
        head = ("row", "seeds", "entropy of a user's mix", "entropy of the mean load",
                "total variation between two users")
        lines = []
        for name, runs in self.rows.items():
            found = [run["gates"] for run in runs if run.get("gates")]
            if found:
                lines.append((ROWS[name].title, str(len(found)), *(
                    f"{np.mean([each[key] for each in found]):.3f}"
                    for key in ("entropy_share", "load_entropy_share", "variation")
                )))
        return _table(head, lines) if lines else ""

    def learning_table(self) -> str:
        """Return AUC against training samples: each quarter of training, answered beforehand."""
        head = ("row", "seeds", "first quarter of the labels", "second", "third", "last")
        lines = []
        for name, runs in self.rows.items():
            curves = [run["learning"] for run in runs if len(run.get("learning", ())) >= 4]
            if curves:
                quarters = np.mean([_quarters(curve) for curve in curves], axis=0)
                lines.append((ROWS[name].title, str(len(curves)), *(f"{q:.4f}" for q in quarters)))
        return _table(head, lines) if lines else ""

    def tuning_tables(self) -> dict[str, str]:
        """Return what was tried on validation, and what stands beside it there, by the type of the
        frozen weights: item vectors, so prompts and CRM, differ with it.
        """
        by_type: dict[str, list[Json]] = {}
        for each in self.tries:
            by_type.setdefault(each["recipe"]["dtype"], []).append(each)
        return {name: _tries_table(tries) for name, tries in sorted(by_type.items())}

    def states_table(self) -> str:
        """Return the AUCs of the linear models by kind of state and penalty, alone and fused."""
        assert self.states is not None
        titles = {"answer": "at the answer token", "block": "mean over the candidate's tokens"}
        lines = [
            (titles[name], inverse,
             *(f"{aucs[model][metric]:.4f}" for model in ("alone", "fused") for metric in AUCS))
            for name, by_penalty in self.states["states"].items()
            for inverse, aucs in by_penalty.items()
        ]
        lines.append(("CRM", "", "", "", "", *(f"{self.states['crm'][m]:.4f}" for m in AUCS)))
        return _table(("state", "C", "AUC", "per-user AUC", "AUC within a slate", "fused AUC",
                       "fused per-user AUC", "fused AUC within a slate"), lines)

    def references_table(self) -> str:
        """Return the rows without a language model, every row with the history before it."""
        head = ("row", "seeds", "weights", "AUC", "per-user AUC", "log loss",
                "our CRM on the whole window minus it, AUC", "per-user AUC", "log loss")
        lines = []
        for name, row in self.references.items():
            weights = row["cost"].get("parameters")
            if "by_row" not in row:
                continue
            shown = [metric for metric in BY_ROW if metric != "log_loss" or name != "popularity"]
            gained = row["by_row, crm-whole - this"] if name != "crm-whole" else {}
            lines.append((
                row["title"], str(row["seeds"]), f"{weights:,}" if weights else "",
                *(_interval(row["by_row"][metric]) if metric in shown else "" for metric in BY_ROW),
                *(_interval(gained[metric], "+") if gained and metric in shown else ""
                  for metric in BY_ROW),
            ))
        return _table(head, lines)

    def peers_table(self) -> str:
        """Return what other libraries' models chose on validation, and by how much."""
        tried = {row["title"]: row["tuning"] for row in self.references.values()}
        tried |= {LISTS[name]: each for name, each in (self.lists or {}).get("tuning", {}).items()}
        lines = []
        for title, tries in tried.items():
            if tries:
                measure = list(tries[0])[-1]            # the score stands behind the settings
                best = max(tries, key=lambda each: each[measure])
                worst = min(each[measure] for each in tries)
                lines.append((title, str(len(tries)), ", ".join(
                    f"{name} {value:g}" for name, value in best.items() if name != measure
                ), measure, f"{best[measure]:.4f}", f"{worst:.4f}"))
        return _table(("model", "settings tried", "chosen", "by, on validation", "best", "worst"),
                      lines) if lines else ""

    def requests_table(self) -> str:
        """Return the same rows, every row with the history before its slate."""
        head = ("row", "seeds", "AUC", "per-user AUC", "AUC within a slate",
                "it minus our CRM out of time, AUC", "per-user AUC", "AUC within a slate")
        return _table(head, [
            (row["title"], str(row["seeds"]),
             *(_interval(row["by_request"][metric]) for metric in AUCS),
             *("" if name == "crm" else _interval(row["by_request, this - crm"][metric], "+")
               for metric in AUCS))
            for name, row in self.references.items() if "by_request" in row
        ])

    def lists_table(self) -> str:
        """Return the metrics of the top-k lists."""
        metrics = ("ndcg@10", "recall@10", "recall@50", "recall@200", "mrr", "novelty@10")
        assert self.lists is not None
        return _table(("list", *metrics, "coverage@10"), [
            (LISTS[name], *(_interval(values[metric]) for metric in metrics),
             f"{self.lists['coverage@10'][name]:.3f}")
            for name, values in self.lists["lists"].items()
        ])

    def list_differences_table(self) -> str:
        """Return the paired differences between lists."""
        metrics = ("ndcg@10", "recall@10", "recall@200", "mrr")
        assert self.lists is not None
        return _table(("difference", *metrics), [
            (pair, *(_interval(values[metric], "+") for metric in metrics))
            for pair, values in self.lists["differences"].items()
        ])

    def sources(self) -> str:
        """Return the command and commit of each file."""
        runs = [run for found in self.rows.values() for run in found]
        runs += [*self.references.values(), *([self.lists] if self.lists else [])]
        runs += [{**each, "row": f"a try of {each['row']}"} for each in self.tries]
        if self.states:
            runs.append({**self.states, "row": "states"})
        seen: dict[tuple[str, str], list[str]] = {}
        for run in runs:
            name = f"{run['row']}-{run['seed']}" if run["row"] in ROWS else run["row"]
            trained_by = {**run.get("cost", {}), **run}.get("trained_by", run["commit"])
            if trained_by != run["commit"]:
                name += f" (trained at {trained_by})"
            seen.setdefault((run["command"], run["commit"]), []).append(name)
        return "\n".join(
            f"- `{command}` at {commit}: {', '.join(names)}"
            for (command, commit), names in seen.items()
        )

    def count(self, key: str) -> int:
        """Return rows or users of the test sample in slate scope."""
        return max(int(runs[0]["test"][key]) for runs in self.rows.values())


def _read(path: Path) -> Json:
    found: Json = json.loads(path.read_text())
    return found


def _read_all(folder: Path, name: str, seeds: Sequence[int]) -> list[Json]:
    paths = [folder / f"{name}-{seed}.json" for seed in seeds]
    return [_read(path) for path in paths if path.exists()]


def _quarters(curve: Sequence[Mapping[str, float]]) -> list[float]:
    """Return the AUC of each quarter of a learning curve, by pairs."""
    parts = np.array_split([[each["auc"], each["pairs"]] for each in curve], 4)
    return [float(np.average(part[:, 0], weights=part[:, 1])) for part in parts]


RECIPE = "readout", "loss", "batch_slates"
"""What of a try's recipe has a column."""


def _tries_table(tries: Sequence[Json]) -> str:
    """Return tries on one ground, and the models that stand beside all of them."""
    titles = {"crm": "CRM, slate history", "popularity": "popularity",
              "vectors": "linear model on item vectors, same labels",
              "rates": "item's rate, same labels"}
    head = ("row", "rate", "readout", "loss", "slates a step", "more", "commit", "AUC",
            "per-user AUC", "AUC within a slate", "fused AUC", "fused per-user AUC",
            "fused AUC within a slate")
    lines = [
        (each["row"], f"{each['rate']:g}", *(str(each["recipe"][name]) for name in RECIPE),
         ", ".join(f"{name}={value}" for name, value in each["settings"].items()
                   if name.rpartition(".")[2] not in RECIPE),
         each.get("trained_by") or each["commit"],
         *_validation(each, "llm"), *_validation(each, "fused"))
        for each in sorted(tries, key=lambda each: (each["row"], each["rate"]))
    ]
    beside = [(title, *[""] * 6, *_validation(tries[0], model), "", "", "")
              for model, title in titles.items()]
    return _table(head, [*lines, *beside])


def _validation(tried: Json, model: str) -> list[str]:
    return [_interval(tried["validation"][model][metric]) for metric in AUCS]


def _of_seeds(runs: Sequence[Json], model: str, metric: str) -> str:
    """Return the mean over seeds, with the lowest and highest where there are several."""
    found = [run["test"]["models"].get(model, {}).get(metric) for run in runs]
    values = [each["value"] for each in found if each]
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{np.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def _interval(interval: Mapping[str, float] | None, sign: str = "") -> str:
    if interval is None:
        return "-"
    value, low, high = (f"{interval[name]:{sign}.4f}" for name in ("value", "low", "high"))
    text = f"{value} [{low}, {high}]"
    decided = sign and (interval["low"] > 0 or interval["high"] < 0)
    return f"**{text}**" if decided else text


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
