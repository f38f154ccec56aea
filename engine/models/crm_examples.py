"""Histories and slates of one partition -> what is counted, trained on and scored; no Ray."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from engine.data.catalogue import Catalogue
from engine.data.profiles import Profiles
from engine.data.roles import Roles
from engine.models.crm_features import CRMRows, FeatureSpace, build_rows, join
from engine.models.crm_scorer import CRMScorer
from engine.models.crm_statistics import count_events
from engine.types import FloatArray, History, Window

ROWS_AT_A_TIME = 2048
"""Rows of one forward pass when slates are scored."""

CRM_SCORES = pa.schema([
    ("slate_id", pa.string()),
    ("user_id", pa.string()),
    ("window", pa.int8()),                          # types.Window
    ("user_state", pa.list_(pa.float32())),         # [D], history strictly before the slate
    ("target_states", pa.list_(pa.float32())),      # [M * H], row by row, the same history
    ("logits", pa.list_(pa.float32())),             # [M], the same history
    ("row_logits", pa.list_(pa.float32())),         # [M], history strictly before each row
])


@dataclass
class TrainingCounts:
    """What one partition holds before the cut; user ids in file order."""

    items_I3: FloatArray
    user_ids: list[str] = field(default_factory=list)
    user_values: dict[str, Counter[str]] = field(default_factory=dict)
    """Field -> value -> users."""
    other_ids: list[str] = field(default_factory=list)
    """Users none of whose events were counted."""


def count_partition(
    histories: Mapping[str, History], profiles: Profiles, size: int, cut_s: int,
    roles: Roles | None = None,
) -> TrainingCounts:
    """Count items and users by their events before the cut; `size` is items + 1.

    With roles, an event that judges is not counted, and nobody is known by it.
    """
    before = {user_id: history.before(cut_s) for user_id, history in histories.items()}
    if roles is not None:
        before = {user_id: roles.counted(user_id, history) for user_id, history in before.items()}
    counts = TrainingCounts(
        count_events(before.values(), size), [], {name: Counter() for name in profiles.fields}
    )
    for user_id, history in before.items():
        if not len(history):
            counts.other_ids.append(user_id)
            continue
        counts.user_ids.append(user_id)
        for name, values in (profiles.of(user_id).fields or {}).items():
            counts.user_values[name].update(set(values))
    return counts


def merge_counts(parts: Sequence[TrainingCounts]) -> TrainingCounts:
    """Return the counts of all partitions."""
    merged = TrainingCounts(np.sum([part.items_I3 for part in parts], axis=0))
    for part in parts:
        merged.user_ids += part.user_ids
        merged.other_ids += part.other_ids
        for name, values in part.user_values.items():
            merged.user_values.setdefault(name, Counter()).update(values)
    return merged


def count_item_values(items_I3: FloatArray, catalogue: Catalogue) -> dict[str, Counter[str]]:
    """Return field -> value -> items, of the items that have an event."""
    known = np.flatnonzero(items_I3[:, 0] > 0).tolist()
    return {
        name: Counter(value for item in known for value in set(column[item]))
        for name, column in catalogue.fields.items()
    }


@dataclass(frozen=True, slots=True)
class UserSlates:
    """The slates of one user in some windows, as columns; rows of all slates in one line."""

    slate_ids: list[str]
    windows: list[int]
    items: list[list[int]]
    labels: list[list[int]]
    history_lengths: list[int]
    row_history_lengths: list[list[int]]


def user_slates(slates: pa.Table, windows: Sequence[Window]) -> dict[str, UserSlates]:
    """Return the slates of the given windows by user, in file order."""
    found: dict[str, UserSlates] = {}
    wanted = set(map(int, windows))
    for row in slates.to_pylist():
        if row["window"] not in wanted:
            continue
        user = found.setdefault(row["user_id"], UserSlates([], [], [], [], [], []))
        user.slate_ids.append(row["slate_id"])
        user.windows.append(row["window"])
        user.items.append(row["items"])
        user.labels.append(row["labels"])
        user.history_lengths.append(row["history_length"])
        user.row_history_lengths.append(row["row_history_lengths"])
    return found


def training_rows(
    space: FeatureSpace, users: Mapping[str, int], histories: Mapping[str, History],
    profiles: Profiles, slates: Mapping[str, UserSlates], cut_s: int,
) -> CRMRows | None:
    """Return the rows of some slates, each with the history strictly before it; None if none.

    `users` gives embedding rows. Nothing at or after the cut is read.
    """
    codes = {
        user_id: space.user_fields.encode_all([profiles.of(user_id).fields]) for user_id in slates
    }
    parts = [
        build_rows(
            space, users.get(user_id, 0), codes[user_id],
            histories[user_id].before(cut_s), np.concatenate(user.items),
            np.concatenate(user.row_history_lengths), np.concatenate(user.labels),
        )
        for user_id, user in slates.items()
    ]
    return join(parts) if parts else None


def score_slates(
    scorer: CRMScorer, histories: Mapping[str, History], profiles: Profiles,
    slates: Mapping[str, UserSlates],
) -> pa.Table:
    """Return logits at slate and at row level, and the states of each slate (CRM_SCORES)."""
    rows = [
        row
        for user_id, user in slates.items()
        for row in _score_user(scorer, histories[user_id], profiles, user_id, user)
    ]
    columns = {name: [row[name] for row in rows] for name in CRM_SCORES.names}
    return pa.table(columns, schema=CRM_SCORES)


def _score_user(
    scorer: CRMScorer, history: History, profiles: Profiles, user_id: str, user: UserSlates
) -> list[dict[str, object]]:
    sizes = [len(items) for items in user.items]
    items, profile = np.concatenate(user.items), profiles.of(user_id)
    per_slate = scorer.rows(profile, history, items, np.repeat(user.history_lengths, sizes))
    per_row = scorer.rows(profile, history, items, np.concatenate(user.row_history_lengths))
    logits, states, targets = _forward(scorer, per_slate)
    row_logits, _, _ = _forward(scorer, per_row)
    ends = np.cumsum(sizes)
    return [
        {
            "slate_id": slate_id, "user_id": user_id, "window": user.windows[place],
            "user_state": states[end - size], "target_states": targets[end - size : end].ravel(),
            "logits": logits[end - size : end], "row_logits": row_logits[end - size : end],
        }
        for place, (slate_id, size, end) in enumerate(
            zip(user.slate_ids, sizes, ends, strict=True)
        )
    ]


def _forward(scorer: CRMScorer, rows: CRMRows) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return logits [B], user states [B, D] (of each row's request) and target states [B, H]."""
    found = []
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        picked = np.arange(start, min(start + ROWS_AT_A_TIME, len(rows)))
        logits, states, targets, _ = scorer.forward(rows, picked)
        _, requests = np.unique(rows.requests_B[picked], return_inverse=True)
        found.append((logits, states[requests], targets))
    logits, states, targets = (np.concatenate(part) for part in zip(*found, strict=True))
    return logits, states, targets
