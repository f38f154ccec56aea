"""Histories and a window of time -> the rows on which releases are compared (kind "exam").

    slates/part-*.parquet   schema.EXAM_SLATES, the users of histories' partition of that number
    items.safetensors       {"events" int64 [items + 1]}: events of each item in training
    sample.json             users whose rows the language model reads and whose lists are ranked

An exam does not depend on the release that sits it, so two releases answer the same questions. Its
rows are of items that all of them know; how many events that leaves out is among the facts. Lists
are held against all that was liked: what a release does not know, it cannot recommend.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.data.layers import read_histories
from engine.data.negatives import NegativeSampler
from engine.data.roles import JudgedRows, Roles
from engine.data.sampling import Offer, reach_rows, sample_key, within_rows
from engine.data.schema import EXAM_SLATES, histories_of, part_name
from engine.data.slates import Slate, slates_table
from engine.data.splits import read_timeline
from engine.errors import DataError, EmptyExamError, ReleaseError
from engine.releases.registry import Registry
from engine.stages.page import format_moment
from engine.stages.partitions import map_partitions
from engine.stages.slates import SlateBuilder, count_items
from engine.types import FeedbackKind, History, IntArray, Timeline, Window

SAMPLE_FILE, ITEMS_FILE = "sample.json", "items.safetensors"


@dataclass(frozen=True, slots=True)
class Examined:
    """What an exam must know of a release."""

    release_id: str
    config: EngineConfig
    timeline: Timeline
    titles: Mapping[str, str]
    """Of every item, by its id."""
    roles: Roles | None = None
    """Those that its training kept to."""


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
    return Examined(
        release_id, registry.read_config(release_id), Timeline(**facts.data_window),
        read_titles(storage.join(folder, "catalogue.parquet")),
        None if facts.roles is None else Roles.from_json(facts.roles),
    )


def read_titles(uri: str) -> dict[str, str]:
    """Return the title of every item of a catalogue's file, by its id."""
    catalogue = storage.read_table(uri, ["item_id", "title"])
    columns = (catalogue[name].to_pylist() for name in ("item_id", "title"))
    return dict(zip(*columns, strict=True))


def unseen_period(histories: Artifact, releases: Sequence[Examined]) -> Period:
    """Return the time that none of the releases learned or chose anything from, to the end.

    Raises DataError if there is none.
    """
    end_s = read_timeline(histories.path("timeline.json")).end_s + 1
    newest = max(releases, key=lambda each: each.timeline.t2_s)
    if end_s <= newest.timeline.t2_s:
        raise DataError(
            f"the histories end at {format_moment(end_s - 1)}, and release "
            f"{newest.release_id!r} learned from events up to "
            f"{format_moment(newest.timeline.t2_s)}: nothing is left to examine"
        )
    return Period(newest.timeline.t2_s, end_s)


def set_exam(
    out: str, histories: Artifact, releases: Sequence[Examined], period: Period, *, llm_rows: int,
    roles: Roles | None = None, train_end_s: int | None = None, newest_s: int | None = None,
) -> Artifact:
    """Return the artifact "exam".

    Labels, slates and seed are those of the first release. llm_rows: most rows (of whole users)
    in the sample. roles: only the rows that judge are asked. train_end_s:
    events before it make items warm and users old, and weigh drawn negatives; by default the first
    release's T1. newest_s: where the newest day begins, a slice of the report. Raises DataError if
    a release learned from events of the period (or does not keep to the roles), no event is in it,
    or the histories are of other data or labels than the releases.
    """
    _check_period(period, releases, roles)
    titles = read_titles(histories.path("items.parquet"))
    _check_data(histories, titles, releases)
    first = releases[0]
    t1_s = min(first.timeline.t1_s if train_end_s is None else train_end_s, period.start_s)
    t0_s = min(first.timeline.t0_s, t1_s)
    timeline = Timeline(first.timeline.start_s, t0_s, t1_s, period.start_s, period.end_s)
    is_known_I = np.array([False, *(
        all(item_id in each.titles for each in releases) for item_id in titles
    )])
    settings = {
        "start_s": period.start_s, "end_s": period.end_s, "train_end_s": timeline.t1_s,
        "seed": first.config.run.seed, "llm_rows": llm_rows,
        "slates": first.config.slates.settings(), "label": first.config.source.label.settings(),
        "items": storage.sha256(is_known_I.tobytes()),
    }
    if roles is not None:
        settings["roles"] = roles.to_json()
    if newest_s is not None:
        settings["newest_s"] = newest_s
    write = partial(
        _write, histories=histories, config=first.config, timeline=timeline,
        is_known_I=is_known_I, llm_rows=llm_rows,
        windows=timeline if roles is None else JudgedRows(timeline, roles),
    )
    return artifacts.make(out, "exam", settings, [histories], write)


def _check_period(
    period: Period, releases: Sequence[Examined], roles: Roles | None = None
) -> None:
    if period.start_s >= period.end_s:
        raise DataError(
            f"the window ends ({format_moment(period.end_s)}) before it starts "
            f"({format_moment(period.start_s)})"
        )
    for each in releases:
        if roles is not None and each.roles == roles:
            continue                    # it learned nothing of what is asked
        if period.start_s < each.timeline.t2_s:
            raise DataError(
                f"release {each.release_id!r} learned from events up to "
                f"{format_moment(each.timeline.t2_s)}; the window starts at "
                f"{format_moment(period.start_s)}"
            )


def _check_data(
    histories: Artifact, titles: Mapping[str, str], releases: Sequence[Examined]
) -> None:
    """Refuse releases and histories whose labels or items mean different things."""
    label = histories.facts.get("label")
    if label is None:
        raise DataError(
            f"{histories.uri} does not name its source.label: an older version wrote it; "
            "import the data again"
        )
    for each in releases:
        if each.config.source.label != releases[0].config.source.label:
            raise DataError(
                f"releases {releases[0].release_id!r} and {each.release_id!r} differ in "
                "source.label: their rows cannot be compared"
            )
        if label != each.config.source.label.settings():
            raise DataError(
                f"the histories were imported with source.label {label}, release "
                f"{each.release_id!r} learned from {each.config.source.label.settings()}"
            )
        shared = each.titles.keys() & titles.keys()
        renamed = sum(each.titles[item_id] != titles[item_id] for item_id in shared)
        if renamed > len(shared) / 2:
            raise DataError(
                f"{renamed:,} of the {len(shared):,} items that release {each.release_id!r} shares "
                f"with {histories.uri} have another title there: they are of different data"
            )


def _write(
    uri: str, *, histories: Artifact, config: EngineConfig, timeline: Timeline,
    is_known_I: npt.NDArray[np.bool_], llm_rows: int, windows: Timeline | JudgedRows,
) -> dict[str, Any]:
    partitions = range(len(histories.files("histories/")))
    events_I = count_items(histories, timeline, partitions)
    sampler = None
    if config.source.label.kind == "implicit":
        sampler = NegativeSampler.from_counts(events_I, config.slates).among(is_known_I)
    builder = SlateBuilder(config, windows, sampler)
    write = partial(
        _write_partition, uri=uri, histories=histories.uri, builder=builder, timeline=timeline,
        events_I=events_I,
        is_known_I=is_known_I, llm_rows=llm_rows,
    )
    parts = map_partitions(write, partitions)
    counts: Counter[str] = sum((count for count, _ in parts), Counter())
    if not counts["rows"]:
        raise EmptyExamError(
            f"no row to examine from {format_moment(timeline.t2_s)} to before "
            f"{format_moment(timeline.end_s)}: "
            f"{counts['unknown_items']:,} events were of items that a release does not know"
        )
    chosen = within_rows([offer for _, offers in parts for offer in offers], llm_rows)
    storage.write_tensors(storage.join(uri, ITEMS_FILE), {"events": events_I})
    storage.write_json(storage.join(uri, SAMPLE_FILE), {"users": [user for _, user, _ in chosen]})
    return {
        **{name: counts[name] for name in ("users", "slates", "rows", "unknown_items")},
        "sampled_users": len(chosen), "sampled_rows": sum(rows for _, _, rows in chosen),
    }


def _write_partition(
    partition: int, *, uri: str, histories: str, builder: SlateBuilder, timeline: Timeline,
    events_I: IntArray, is_known_I: npt.NDArray[np.bool_], llm_rows: int,
) -> tuple[Counter[str], list[Offer]]:
    """Write one partition's slates; return counts and the users that it offers to the sample."""
    table = read_histories(histories, partition)
    seed = builder.config.run.seed
    counts = Counter[str]()
    pairs: list[tuple[str, Slate]] = []
    contexts: list[dict[str, Any]] = []
    offers: list[Offer] = []
    for user_id, whole in histories_of(table).items():
        history = whole.before(timeline.end_s)
        slates = [
            slate for slate in builder.build(user_id, history)[0] if slate.window == Window.TEST
        ]
        parts = [(known_rows(slate, is_known_I), _unknown(slate, is_known_I)) for slate in slates]
        asked = [(kept, liked) for kept, liked in parts if len(kept.items) or len(liked.items)]
        rows = sum(len(kept.items) for kept, _ in asked)
        counts["unknown_items"] += sum(
            int((~is_known_I[slate.items]).sum()) for slate in slates
        )
        if not asked:
            continue
        for kept, liked in asked:
            pairs.append((user_id, kept))
            contexts.append({
                **_context(kept, history, timeline, events_I),
                "unknown_liked": liked.items, "unknown_kinds": liked.kinds,
            })
        counts.update(users=1, slates=len(asked), rows=rows)
        offers.append((sample_key(seed, user_id), user_id, rows))
    written = slates_table(pairs)
    for name in EXAM_SLATES.names[len(written.schema) :]:
        values = pa.array([each[name] for each in contexts], EXAM_SLATES.field(name).type)
        written = written.append_column(name, values)
    storage.write_table(storage.join(uri, part_name("slates", partition)), written)
    return counts, reach_rows(offers, llm_rows)


def known_rows(slate: Slate, is_known_I: npt.NDArray[np.bool_]) -> Slate:
    """Return the slate's rows of known items. Drawn negatives are as many for each positive as
    before: with a positive go those that have its time.
    """
    is_kept = is_known_I[slate.items]
    for kind in (FeedbackKind.REPEAT, FeedbackKind.NEW):
        is_positive = (slate.kinds == kind) & (slate.labels == 1)
        negatives = np.flatnonzero((slate.kinds == kind) & (slate.labels == 0))
        if len(negatives):
            share = is_kept[is_positive].sum() / is_positive.sum()
            gone_s = slate.timestamps_s[is_positive & ~is_kept]
            is_theirs = np.isin(slate.timestamps_s[negatives], gone_s)
            own_first = negatives[np.argsort(is_theirs, kind="stable")]
            is_kept[own_first[round(share * len(negatives)) :]] = False
    return _rows(slate, is_kept)


def _unknown(slate: Slate, is_known_I: npt.NDArray[np.bool_]) -> Slate:
    """Return the liked rows of items that a release does not know."""
    return _rows(slate, ~is_known_I[slate.items] & (slate.labels == 1))


def _rows(slate: Slate, is_kept: npt.NDArray[np.bool_]) -> Slate:
    return Slate(
        slate.first, slate.window, slate.history_length, slate.items[is_kept],
        slate.labels[is_kept], slate.kinds[is_kept], slate.timestamps_s[is_kept],
        slate.row_history_lengths[is_kept],
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
