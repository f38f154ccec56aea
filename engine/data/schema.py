"""Arrow schemas of every table, and how rows become arrays.

    interactions   one row per event, after validation          interactions/part-00000.parquet
    items          the catalogue; `item` is the item's index     items.parquet
    users          profiles                                      users.parquet
    quarantine     refused rows with their source and reason     quarantine/part-00000.parquet
    histories      one row per user, events oldest first         histories/part-00000.parquet
    deleted        whose older events are not read (layers.py)   deleted.parquet
    slates         one row per slate                             slates/part-00000.parquet

A partition number is `partition_of(user_id)`: a user's rows of every table stand in files of one
number. Fields of items and users are lists of text, a single value being a list of one.
"""

import zlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.types import History

INTERACTIONS = pa.schema([
    ("user_id", pa.string()),
    ("item_id", pa.string()),
    ("timestamp_s", pa.int64()),
    ("rating", pa.float32()),       # 1 where the source has none
    ("label", pa.int8()),           # 0 or 1; always 1 for implicit feedback
])

QUARANTINE = pa.schema([
    ("source", pa.string()),        # file, or member of a zip
    ("line", pa.int64()),           # 1-based line (text) or row (Parquet)
    ("text", pa.string()),          # the row as it was read
    ("reason", pa.string()),
])

HISTORIES = pa.schema([
    ("user_id", pa.string()),
    ("items", pa.list_(pa.int32())),
    ("ratings", pa.list_(pa.float32())),
    ("labels", pa.list_(pa.int8())),
    ("timestamps_s", pa.list_(pa.int64())),
])

DELETED = pa.schema([
    ("user_id", pa.string()),
    ("deleted_s", pa.int64()),      # what happened up to then is gone
])

SLATES = pa.schema([
    ("slate_id", pa.string()),                      # "<user_id>:<position of the first row>"
    ("user_id", pa.string()),
    ("window", pa.int8()),                          # types.Window
    ("history_length", pa.int32()),                 # events strictly before the first row
    ("items", pa.list_(pa.int32())),                # M candidates
    ("labels", pa.list_(pa.int8())),
    ("kinds", pa.list_(pa.int8())),                 # types.FeedbackKind
    ("timestamps_s", pa.list_(pa.int64())),
    ("row_history_lengths", pa.list_(pa.int32())),  # events strictly before each row
])


def items_schema(fields: tuple[str, ...]) -> pa.Schema:
    """Return the schema of the catalogue: index (1 and up, by item id), id, title, fields."""
    return pa.schema([
        ("item", pa.int32()), ("item_id", pa.string()), ("title", pa.string()),
        *[(field, pa.list_(pa.string())) for field in fields],
    ])


def users_schema(fields: tuple[str, ...]) -> pa.Schema:
    """Return the schema of profiles: user id, fields."""
    return pa.schema([
        ("user_id", pa.string()), *[(field, pa.list_(pa.string())) for field in fields],
    ])


def partition_of(user_id: str, num_partitions: int) -> int:
    """Return the partition of a user: the same in every process, version and machine."""
    return zlib.crc32(user_id.encode()) % num_partitions


def part_name(folder: str, partition: int) -> str:
    """Return the file name of one partition of a table."""
    return f"{folder}/part-{partition:05d}.parquet"


def histories_of(table: pa.Table) -> dict[str, History]:
    """Return the histories of one partition by user id."""
    columns = {}
    for name in ("items", "ratings", "labels", "timestamps_s"):
        column = table[name].combine_chunks()
        ends = np.cumsum(pc.list_value_length(column).to_numpy(zero_copy_only=False))
        columns[name] = np.split(column.flatten().to_numpy(zero_copy_only=False), ends[:-1])
    users = table["user_id"].to_pylist()
    rows = zip(*columns.values(), strict=True)      # one empty row where there are no users
    return {user: History(*row) for user, row in zip(users, rows, strict=False)}


SCORES = pa.schema([
    ("user_id", pa.string()),
    ("slate_id", pa.string()),
    ("window", pa.int8()),
    ("item", pa.int32()),
    ("label", pa.int8()),
    ("kind", pa.int8()),                  # types.FeedbackKind
    ("timestamp_s", pa.int64()),
    ("history_length", pa.int32()),       # events strictly before the slate
    ("popularity", pa.float32()),
    ("crm_row_logit", pa.float32()),      # CRM with the history strictly before the row
    ("crm_logit", pa.float32()),          # CRM with the history strictly before the slate
    ("llm_logit", pa.float32()),          # null outside the sample, as are the next two
    ("zero_shot_logit", pa.float32()),    # base model without the bank
    ("shuffled_logit", pa.float32()),     # bank under another user's gates (a derangement)
])
"""Scores of every row of validation and test: scores/part-00000.parquet."""

EXAM_SLATES = pa.schema([
    *SLATES,
    ("item_events", pa.list_(pa.int64())),    # events of each candidate in training
    ("user_events", pa.int32()),              # events of the user in training
    ("idle_s", pa.int64()),               # since the last event before the slate; null: the first
    ("unknown_liked", pa.list_(pa.int32())),  # liked items that a release does not know: no rows
    ("unknown_kinds", pa.list_(pa.int8())),   # types.FeedbackKind of each
])
"""The slates that releases are examined on: slates/part-00000.parquet of an exam."""

EXAM_SCORES = pa.schema([
    ("user_id", pa.string()),
    ("slate_id", pa.string()),
    ("item", pa.int32()),                 # index in the histories' catalogue
    ("label", pa.int8()),
    ("kind", pa.int8()),                  # types.FeedbackKind
    ("history_length", pa.int32()),       # events strictly before the slate
    ("item_events", pa.int64()),
    ("user_events", pa.int32()),
    ("idle_s", pa.int64()),
    ("timestamp_s", pa.int64()),
    ("popularity", pa.float32()),
    ("crm_row_logit", pa.float32()),      # CRM with the history strictly before the row
    ("crm_logit", pa.float32()),          # CRM with the history strictly before the slate
    ("llm_logit", pa.float32()),          # null outside the sample
])
"""One release's scores of an exam's rows: scores/part-00000.parquet."""

RANKED_LISTS = pa.schema([
    ("user_id", pa.string()),
    ("slate_id", pa.string()),
    ("history_length", pa.int32()),       # as in EXAM_SCORES
    ("user_events", pa.int32()),
    ("idle_s", pa.int64()),
    ("liked", pa.list_(pa.int32())),      # items of the slate that the user liked
    ("kinds", pa.list_(pa.int8())),       # types.FeedbackKind of each
    ("full", pa.list_(pa.int32())),       # best first: retrieval, CRM, language model
    ("crm", pa.list_(pa.int32())),        # retrieval, CRM
    ("popular", pa.list_(pa.int32())),
    ("history", pa.list_(pa.int32())),    # what the user had, most often first; empty if excluded
])
"""One release's rankings of the catalogue, one for each sampled slate with a liked item: items
are indices in the histories' catalogue."""

RECOMMENDATIONS = pa.schema([
    ("user_id", pa.string()),
    ("rank", pa.int32()),                 # 1 is the best
    ("item_id", pa.string()),
    ("title", pa.string()),
    ("score", pa.float64()),              # final logit
    ("crm_score", pa.float64()),          # logit; null for popular items
    ("llm_score", pa.float64()),          # logit; null where the language model was not asked
    ("mode", pa.string()),                # types.AnswerMode
])
"""The best items of users: recommendations/part-00000.parquet."""

PROMPTS = pa.schema([
    ("slate_id", pa.string()),
    ("user_id", pa.string()),
    ("window", pa.int8()),
    ("first_slot", pa.int32()),           # place of the first candidate in its slate
    ("prefix", pa.list_(pa.int32())),     # token ids
    ("blocks", pa.list_(pa.list_(pa.int32()))),
    ("labels", pa.list_(pa.int8())),
    ("cut", pa.int32()),                  # past events that did not fit into the prompt
])
"""One row per prompt: a slate (slate scope) or one candidate of it (candidate scope)."""
