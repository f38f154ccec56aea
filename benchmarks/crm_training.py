"""What a step of CRM training costs as histories grow, beside FuxiCTR's SIM, ETA and SDIM.

python -m benchmarks.crm_training --json benchmarks/results/crm_training.json
    [--lengths 200 1000] [--curve 200 1000 10000] [--rounds 5] [--rows 512]

All take turns in one run on generated rows: as many events behind every candidate as the length
says. Our step holds everything between a user's events and the updated weights: retrieval of the
60 relevant events, features, batch, forward, backward, DeepSpeed's optimiser. A peer's step starts
from arrays made in advance, with two item features and no user feature. The second part is our
cost alone over a wider range of lengths.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.peers.environment import script_command
from benchmarks.race import Lap, circumstances, race, summarise, write_result
from engine import storage
from engine.config import CRMConfig, SourceConfig
from engine.data.catalogue import Catalogue
from engine.models.crm import CRMShape
from engine.models.crm_features import FeatureSpace, build_rows, item_table, join, num_levels
from engine.models.crm_statistics import ItemStatistics
from engine.models.crm_vocabulary import FieldTable, FieldVocabulary
from engine.training.crm_loop import CRMLoopSettings, CRMTrainer
from engine.training.session import LocalSession
from engine.types import History

PEERS = ("SIM", "ETA", "SDIM")
USERS, ITEMS, FIELDS, TEXT = 6_000, 20_000, 50, 64
ROWS_PER_USER = 32
STEPS = 4
"""Steps of a lap."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description="Race CRM training against LongCTR models.")
    parser.add_argument("--json", required=True, help="file for the result")
    parser.add_argument("--lengths", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--curve", type=int, nargs="+", default=[200, 500, 1000, 2000, 5000, 10000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=512, help="rows of a step")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {
        "benchmark": "crm_training", "command": " ".join(sys.argv[1:]), **circumstances(),
        "rows_per_step": options.rows, "items": ITEMS, "against_peers": {}, "curve": {},
    }
    for length in options.lengths:
        result["against_peers"][str(length)] = race_peers(length, options)
        write_result(result, options.json)
    result["curve"] = race_lengths(options)
    write_result(result, options.json)
    print(json.dumps(result, indent=2))
    return 0


def race_peers(length: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return rows per CPU-second of ours and of each peer, and ratios to SDIM."""
    data = Data(length, options.rows * STEPS)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        subjects: dict[str, Callable[[], float | Lap]] = {
            "ours": Ours(data, folder, options.rows, length)
        }
        np.savez(folder / "rows.npz", **data.arrays())
        subjects |= {
            name: stack.enter_context(Peer(name, folder / "rows.npz", options)) for name in PEERS
        }
        return summarise(race(subjects, options.rounds), "SDIM", "rows")


def race_lengths(options: argparse.Namespace) -> dict[str, Any]:
    """Return our rows per CPU-second at each length, and ratios to the shortest."""
    with tempfile.TemporaryDirectory() as name:
        subjects = {
            str(length): Ours(Data(length, options.rows), Path(name), options.rows, length, steps=1)
            for length in options.curve
        }
        return summarise(race(subjects, options.rounds), str(options.curve[0]), "rows")


class Data:
    """Users with `length` events and ROWS_PER_USER candidates after them; items by a power law."""

    def __init__(self, length: int, rows: int) -> None:
        draw = np.random.default_rng(1)
        self.length, users = length, -(-rows // ROWS_PER_USER)
        chances = 1 / np.arange(1, ITEMS + 1) ** 0.8
        shape = users, length + ROWS_PER_USER
        self.items_UL = 1 + draw.choice(ITEMS, size=shape, p=chances / chances.sum())
        self.labels_UL = draw.integers(0, 2, shape)
        self.fields_I = np.concatenate([[0], draw.integers(1, FIELDS, ITEMS)])

    def histories(self) -> list[History]:
        """Return each user's events; those from `length` on are candidates."""
        seconds = np.arange(self.items_UL.shape[1])
        return [
            History(items, 1.0 + 4 * labels, labels, seconds)
            for items, labels in zip(self.items_UL, self.labels_UL, strict=True)
        ]

    def arrays(self) -> dict[str, Any]:
        """Return rows as a peer reads them, the newest event last."""
        places = np.arange(self.length, self.length + ROWS_PER_USER)
        history = np.stack([self.items_UL[:, p - self.length : p] for p in places], axis=1)
        return {
            "history_NL": history.reshape(-1, self.length),
            "item_N": self.items_UL[:, places].reshape(-1),
            "label_N": self.labels_UL[:, places].reshape(-1).astype(np.float32),
            "fields_I": self.fields_I,
        }


class Ours:
    """Our CRM's training, from users' events to updated weights."""

    def __init__(
        self, data: Data, folder: Path, rows: int, length: int, *, steps: int = STEPS
    ) -> None:
        self.length, self.steps = length, steps
        self.users_per_step = rows // ROWS_PER_USER
        self.histories = data.histories()
        crm = CRMConfig(max_history=length, batch_size=rows, lanes=1)
        self.space = make_space(data, crm)
        self.codes = self.space.user_fields.encode_all([{"kind": ["a"]}])
        self.trainer = make_trainer(self.space, crm, folder / f"ours-{length}")
        self.step = 0

    def __call__(self) -> Lap:
        """Run the steps of a lap."""
        cpu_s, wall_s, work = time.process_time(), time.perf_counter(), 0
        for _ in range(self.steps):
            first = self.step * self.users_per_step
            chosen = [(first + k) % len(self.histories) for k in range(self.users_per_step)]
            rows = join([self._rows(user) for user in chosen])
            batch = rows.batch(np.arange(len(rows)), self.space.crm.max_recent)
            self.trainer.step(self.step, batch, True)
            self.step += 1
            work += len(rows)
        return Lap(work, time.process_time() - cpu_s, time.perf_counter() - wall_s)

    def _rows(self, user: int) -> Any:
        history = self.histories[user]
        lengths = np.arange(self.length, self.length + ROWS_PER_USER)
        return build_rows(self.space, user + 1, self.codes, history, history.items[lengths],
                          lengths, history.labels[lengths])


def make_space(data: Data, crm: CRMConfig) -> FeatureSpace:
    """Return what features depend on."""
    draw = np.random.default_rng(2)
    vectors = draw.normal(size=(ITEMS + 1, TEXT)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    catalogue = Catalogue(
        ["", *map(str, range(1, ITEMS + 1))], [""] * (ITEMS + 1),
        {"field": [(), *((str(code),) for code in data.fields_I[1:])]},
    )
    counts = np.bincount(data.items_UL.reshape(-1), minlength=ITEMS + 1).astype(np.float64)
    statistics = ItemStatistics.of(np.stack([counts, counts / 2, counts * 3], axis=1))
    names = tuple(map(str, range(1, FIELDS)))
    fields = FieldTable([FieldVocabulary("field", values=names)])
    return FeatureSpace(
        crm, SourceConfig(), FieldTable([FieldVocabulary("kind", values=("a",))]),
        item_table(catalogue, vectors, fields, statistics, np.arange(ITEMS + 1)), statistics,
    )


def make_trainer(space: FeatureSpace, crm: CRMConfig, folder: Path) -> CRMTrainer:
    """Return the training loop's own trainer, alone in its process."""
    if not dist.is_initialized():
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0",
                       "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        store = dist.HashStore()        # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    items = space.items
    storage.write_tensors(str(folder / "items.safetensors"), {
        "rows_I": items.rows_I, "codes_IK": items.codes_IK, "weights_IK": items.weights_IK,
        "text_IT": items.text_IT, "dense_I3": items.dense_I3,
        "positives": space.statistics.counts_I3[:, 1],
    })
    shape = CRMShape(1 + USERS, ITEMS + 1, space.user_fields.size, FIELDS + 1,
                     num_levels(space.source), TEXT)
    settings = CRMLoopSettings(
        crm=crm, shape={name: getattr(shape, name) for name in shape.__slots__},
        examples=str(folder), row_counts=(1,), seed=1,
    )
    return CRMTrainer(settings, LocalSession(folder), total_steps=10_000)


class Peer:
    """A child process that trains on command."""

    def __init__(self, name: str, rows: Path, options: argparse.Namespace) -> None:
        command, environment = script_command("fuxictr", "fuxictr_speed.py", [
            "--rows", str(rows), "--model", name, "--batch-size", str(options.rows),
            "--width", "16", "--top", "60", "--threads", str(options.threads),
        ], threads=options.threads)
        self.child = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Callable[[], Lap]:
        assert self.child.stdout is not None
        if self.child.stdout.readline().strip() != "ready":
            raise RuntimeError(f"the peer did not start: {self.child.args!r}")
        return self.lap

    def __exit__(self, *_: object) -> None:
        assert self.child.stdin is not None
        self.child.stdin.close()
        self.child.wait()

    def lap(self) -> Lap:
        """Let the child run the steps of a lap."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(f"{STEPS}\n")
        self.child.stdin.flush()
        found = json.loads(self.child.stdout.readline())
        return Lap(found["work"], found["cpu_s"], found["wall_s"])


if __name__ == "__main__":
    sys.exit(main())
