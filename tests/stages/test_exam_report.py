"""Two releases' answers, by hand: which is subtracted from which, and on what rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.data.schema import EXAM_SCORES, RANKED_LISTS, part_name
from engine.errors import ArtifactError, DataError
from engine.models.fusion import IDENTITY, Fusion
from engine.stages.exam_report import Answers, Settings, examine
from engine.types import FeedbackKind

SLATES = {"u:0": "u", "u:4": "u", "v:0": "v", "w:0": "w"}
LABELS = (1, 0, 0, 1)
FUSION = Fusion(1.0, 1.0, 0.0, IDENTITY, IDENTITY)
SETTINGS = Settings(num_draws=50, seed=1, max_rows=1000)


@pytest.fixture
def exam(tmp_path: Path) -> Artifact:
    def write(uri: str) -> dict[str, Any]:
        events = {"events": np.arange(21)}
        storage.write_tensors(storage.join(uri, "items.safetensors"), events)
        return {"rows": 16}

    return artifacts.make(str(tmp_path), "exam", {}, [], write)


def answers(
    root: Path, name: str, sign: float, *, unread: tuple[str, ...] = (), had: Sequence[int] = (),
    **change: Any,
) -> Any:
    """Return a release whose logits say the label (sign 1) or its contrary (-1)."""
    rows = [
        {
            "user_id": user, "slate_id": slate, "item": 1 + place, "label": label,
            "kind": int(FeedbackKind.EXPLICIT), "history_length": 3, "item_events": 1 + place,
            "user_events": 5, "idle_s": 60, "popularity": 0.0,
            "crm_row_logit": sign * (2.0 * label - 1), "crm_logit": sign * (2.0 * label - 1),
            "llm_logit": None if slate in unread else sign * (2.0 * label - 1), **change,
        }
        for slate, user in SLATES.items() for place, label in enumerate(LABELS)
    ]
    found = [1, 4, 7, 8] if sign > 0 else [7, 8, 9, 10]
    lists = [
        {"user_id": user, "slate_id": slate, "history_length": 3, "user_events": 5, "idle_s": 60,
         "liked": [1, 4],
         "kinds": [int(FeedbackKind.EXPLICIT)] * 2,
         **dict.fromkeys(("full", "crm"), found), "popular": [4, 7], "history": had}
        for slate, user in SLATES.items()
    ]

    def write(uri: str) -> dict[str, Any]:
        for folder, table in (
            ("scores", pa.Table.from_pylist(rows, schema=EXAM_SCORES)),
            ("lists", pa.Table.from_pylist(lists, schema=RANKED_LISTS)),
        ):
            storage.write_table(storage.join(uri, part_name(folder, 0)), table)
        return {"rows": len(rows), "modes": {"full": 4}, "unread_slates": len(unread),
                "cpu_s": 2.0}

    scores = artifacts.make(str(root), "release_scores", {"release": name}, [], write)
    return Answers(name, scores, FUSION, size_bytes=1000)


def test_the_difference_is_the_first_release_minus_the_second(
    exam: Artifact, tmp_path: Path
) -> None:
    good, bad = answers(tmp_path, "good", 1), answers(tmp_path, "bad", -1)
    for first, second, expected in ((good, bad, 1.0), (bad, good, -1.0)):
        report = examine(exam, [first, second], SETTINGS)
        difference = report["difference"]
        assert (difference["first"], difference["second"]) == (
            first.release_id, second.release_id
        )
        for table in difference["tables"]:
            models = table["models"]
            for model in {"crm", "llm", "fused"} & models.keys():
                assert models[model]["auc"]["value"] == expected
                assert models[model]["log_loss"]["value"] * expected < 0
            assert models["popularity"]["auc"]["value"] == 0
        for part in ("all", "old users", "active users"):
            values = {each["list"]: each["metrics"]["ndcg@10"]["value"]
                      for each in difference["rankings"] if each["slice"] == part}
            assert values == {"full": expected, "crm": expected, "popular": 0}


def test_the_language_models_are_compared_where_both_could_read(
    exam: Artifact, tmp_path: Path
) -> None:
    one = answers(tmp_path, "one", 1, unread=("u:0",))
    two = answers(tmp_path, "two", -1, unread=("v:0",))
    report = examine(exam, [one, two], SETTINGS)
    assert [each["unread_slates"] for each in report["releases"]] == [1, 1]
    for release in report["releases"]:
        sizes = {table["rows"]: (table["num_rows"], table["num_users"])
                 for table in release["tables"] if table["slice"] == "all"}
        assert sizes == {"all": (16, 3), "sample": (8, 2)}
    [alone] = examine(exam, [one], SETTINGS)["releases"]
    assert [table["num_rows"] for table in alone["tables"]
            if (table["rows"], table["slice"]) == ("sample", "all")] == [12]


def test_releases_that_read_no_slate_in_common_are_not_compared(
    exam: Artifact, tmp_path: Path
) -> None:
    one = answers(tmp_path, "one", 1, unread=("u:0", "u:4"))
    two = answers(tmp_path, "two", 1, unread=("v:0", "w:0"))
    with pytest.raises(DataError, match="no slate of the sample was read"):
        examine(exam, [one, two], SETTINGS)


def test_a_list_that_one_release_alone_has_is_left_out_of_the_difference(
    exam: Artifact, tmp_path: Path
) -> None:
    one, two = answers(tmp_path, "one", 1, had=[1, 2]), answers(tmp_path, "two", -1)
    for first, second in ((one, two), (two, one)):
        difference = examine(exam, [first, second], SETTINGS)["difference"]
        assert {each["list"] for each in difference["rankings"]} == {"full", "crm", "popular"}


def test_answers_to_other_rows_are_not_compared(exam: Artifact, tmp_path: Path) -> None:
    one, two = answers(tmp_path, "one", 1), answers(tmp_path, "two", 1, item=9)
    with pytest.raises(ArtifactError, match="'one' and 'two' did not answer the same rows"):
        examine(exam, [one, two], SETTINGS)
