"""Histories and a window of time -> the rows on which releases are compared (kind "exam").

    slates/part-*.parquet   schema.EXAM_SLATES, the users of histories' partition of that number
    items.safetensors       {"events" int64 [items + 1]}: events of each item in training
    sample.json             users whose rows the language model reads and whose lists are ranked

An exam does not depend on the release that sits it, so two releases answer the same questions. It
asks only about items that all of them know; how many rows that leaves out is among the facts.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.data.negatives import NegativeSampler
from engine.data.sampling import Offer, reach_rows, sample_key, within_rows
from engine.data.schema import EXAM_SLATES, histories_of, part_name
from engine.data.slates import Slate, slates_table
from engine.data.splits import read_timeline
from engine.errors import DataError, ReleaseError
from engine.releases.registry import Registry
from engine.stages.partitions import map_partitions
from engine.stages.slates import SlateBuilder, count_items
from engine.types import History, IntArray, Timeline, Window

SAMPLE_FILE, ITEMS_FILE = "sample.json", "items.safetensors"


@dataclass(frozen=True, slots=True)
class Examined:
    """What an exam must know of a release."""

    release_id: str
    config: EngineConfig
    timeline: Timeline
    item_ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class Period:
    """Events to be predicted: start <= time < end, in seconds."""

    start_s: int
    end_s: int


def read_examined(registry: Registry, release_id: str) -> Examined:
    """Return what an exam must know of a release; verifies nothing but the manifest.

    Raises ReleaseError for a release that does not say what time it learned from.
    """
    facts = registry.read_manifest(release_id).facts
    if not facts.data_window:
        raise ReleaseError(f"release {release_id!r} does not say what time it learned from")
    folder = registry.folder(release_id)
    ids = storage.read_table(storage.join(folder, "catalogue.parquet"), ["item_id"])["item_id"]
    return Examined(
        release_id,
        registry.read_config(release_id),
        Timeline(**facts.data_window), frozenset(ids.to_pylist()),
    )


def unseen_period(histories: Artifact, releases: Sequence[Examined]) -> Period:
    """Return the time that none of the releases learned or chose anything from, to the end."""
    end_s = read_timeline(histories.path("timeline.json")).end_s + 1
    return Period(max(each.timeline.t2_s for each in releases), end_s)


def set_exam(
    out: str, histories: Artifact, releases: Sequence[Examined], period: Period, *, llm_rows: int
) -> Artifact:
    """Return the artifact "exam".

    Labels, slates and seed are those of the first release. llm_rows: most rows (of whole users)
    in the sample. Raises DataError if a release learned from events of the period, or no event is
    in it.
    """
    _check_period(period, releases)
    first = releases[0]
    timeline = Timeline(
        first.timeline.start_s, first.timeline.t0_s, first.timeline.t1_s, period.start_s,
        period.end_s,
    )
    item_ids = storage.read_table(histories.path("items.parquet"), ["item_id"])["item_id"]
    is_known_I = np.array([False, *(
        all(item_id in each.item_ids for each in releases) for item_id in item_ids.to_pylist()
    )])
    settings = {
        "start_s": period.start_s, "end_s": period.end_s, "train_end_s": timeline.t1_s,
        "seed": first.config.run.seed, "llm_rows": llm_rows,
        "slates": first.config.slates.settings(), "label": first.config.source.label.settings(),
        "items": storage.sha256(is_known_I.tobytes()),
    }
    write = partial(
        _write, histories=histories, config=first.config, timeline=timeline,
        is_known_I=is_known_I, llm_rows=llm_rows,
    )
    return artifacts.make(out, "exam", settings, [histories], write)


def _check_period(period: Period, releases: Sequence[Examined]) -> None:
    if period.start_s >= period.end_s:
        raise DataError(f"the window ends ({period.end_s}) before it starts ({period.start_s})")
    for each in releases:
        if period.start_s < each.timeline.t2_s:
            raise DataError(
                f"release {each.release_id!r} learned from events up to second "
                f"{each.timeline.t2_s}; the window starts at {period.start_s}"
            )
        if each.config.source.label != releases[0].config.source.label:
            raise DataError(
                f"releases {releases[0].release_id!r} and {each.release_id!r} differ in "
                "source.label: their rows cannot be compared"
            )


def _write(
    uri: str, *, histories: Artifact, config: EngineConfig, timeline: Timeline,
    is_known_I: npt.NDArray[np.bool_], llm_rows: int,
) -> dict[str, Any]:
    partitions = range(len(histories.files("histories/")))
    events_I = count_items(histories, timeline, partitions)
    sampler = None
    if config.source.label.kind == "implicit":
        sampler = NegativeSampler.from_counts(events_I, config.slates)
    builder = SlateBuilder(config, timeline, sampler)
    write = partial(
        _write_partition, uri=uri, histories=histories.uri, builder=builder, events_I=events_I,
        is_known_I=is_known_I, llm_rows=llm_rows,
    )
    parts = map_partitions(write, partitions)
    counts: Counter[str] = sum((count for count, _ in parts), Counter())
    if not counts["rows"]:
        raise DataError(
            f"no row to examine between second {timeline.t2_s} and {timeline.end_s}: "
            f"{counts['unknown_items']} rows were of items that a release does not know"
        )
    chosen = within_rows([offer for _, offers in parts for offer in offers], llm_rows)
    storage.write_tensors(storage.join(uri, ITEMS_FILE), {"events": events_I})
    storage.write_json(storage.join(uri, SAMPLE_FILE), {"users": [user for _, user, _ in chosen]})
    return {
        **{name: counts[name] for name in ("users", "slates", "rows", "unknown_items")},
        "sampled_users": len(chosen), "sampled_rows": sum(rows for _, _, rows in chosen),
    }


def _write_partition(
    partition: int, *, uri: str, histories: str, builder: SlateBuilder, events_I: IntArray,
    is_known_I: npt.NDArray[np.bool_], llm_rows: int,
) -> tuple[Counter[str], list[Offer]]:
    """Write one partition's slates; return counts and the users that it offers to the sample."""
    table = storage.read_table(storage.join(histories, part_name("histories", partition)))
    timeline, seed = builder.timeline, builder.config.run.seed
    counts = Counter[str]()
    pairs: list[tuple[str, Slate]] = []
    contexts: list[dict[str, Any]] = []
    offers: list[Offer] = []
    for user_id, whole in histories_of(table).items():
        history = whole.before(timeline.end_s)
        slates = [
            slate for slate in builder.build(user_id, history)[0] if slate.window == Window.TEST
        ]
        kept = [kept for slate in slates if len((kept := _keep(slate, is_known_I)).items)]
        rows = sum(len(slate.items) for slate in kept)
        counts["unknown_items"] += sum(len(slate.items) for slate in slates) - rows
        if not kept:
            continue
        pairs += [(user_id, slate) for slate in kept]
        contexts += [_context(slate, history, timeline, events_I) for slate in kept]
        counts.update(users=1, slates=len(kept), rows=rows)
        offers.append((sample_key(seed, user_id), user_id, rows))
    written = slates_table(pairs)
    for name in EXAM_SLATES.names[len(written.schema) :]:
        values = pa.array([each[name] for each in contexts], EXAM_SLATES.field(name).type)
        written = written.append_column(name, values)
    storage.write_table(storage.join(uri, part_name("slates", partition)), written)
    return counts, reach_rows(offers, llm_rows)


def _keep(slate: Slate, is_known_I: npt.NDArray[np.bool_]) -> Slate:
    """Return the slate without the items that a release does not know."""
    kept = is_known_I[slate.items]
    return Slate(
        slate.first, slate.window, slate.history_length, slate.items[kept], slate.labels[kept],
        slate.kinds[kept], slate.timestamps_s[kept], slate.row_history_lengths[kept],
    )


def _context(
    slate: Slate, history: History, timeline: Timeline, events_I: IntArray
) -> dict[str, Any]:
    """Return what the slices of the report need."""
    idle_s = None
    if slate.history_length:
        last_s = history.timestamps_s[slate.history_length - 1]
        idle_s = int(history.timestamps_s[slate.first] - last_s)
    return {
        "item_events": events_I[slate.items], "idle_s": idle_s,
        "user_events": len(history.before(timeline.t1_s)),
    }
