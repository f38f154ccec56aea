"""Nights of made-up outputs: what goes when one has ended, and that nothing else does."""

import os
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine import artifacts, storage
from engine.artifacts import Artifact, open_artifact
from engine.data.deletions import Deletions
from engine.data.layers import read_histories
from engine.errors import ChecksumError
from engine.releases.experiment import Experiment
from engine.releases.registry import Registry
from engine.stages import extended_histories
from engine.stages.extended_histories import extend_histories
from engine.stages.forgetting import Forgotten, forget, read_published
from engine.state.nights import Entry, EntryKind
from tests.night_world import (
    PARTITIONS,
    Event,
    base_of,
    day_of,
    events_by_user,
    files_that_name,
    night_config,
)

GONE = "user-who-left"
BASE: list[Event] = [(GONE, "1", 10), (GONE, "3", 20), ("b", "1", 15), ("c", "3", 30)]
PARTS = ("item_text", "crm", "bank", "popularity", "fusion")
"""Kinds that a release is made of, beside histories."""
WORK = ("slates", "crm_examples", "crm_scores", "prompts", "scores", "golden")
JUDGED = ("exam", "release_scores", "exam_report")


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the tasks of partitions in this process, and wait for no disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(
        extended_histories, "map_partitions",
        lambda function, partitions: [function(number) for number in partitions],
    )


@dataclass
class Nights:
    """A run, a registry and a ledger; every output that may name users does."""

    folder: Path
    keep_layers: int = 7
    ledger: list[Entry] = field(default_factory=list)
    histories: list[Artifact] = field(default_factory=list)
    """By release number; the live release is the last of `live`."""
    live: list[int] = field(default_factory=list)

    @property
    def run(self) -> str:
        return str(self.folder / "run")

    @property
    def registry(self) -> Registry:
        return Registry(str(self.folder / "releases"))

    def train(self) -> None:
        """Make the first release."""
        day = day_of(self.run, BASE, jobs={GONE: "nurse", "b": "cook"})
        self._publish(base_of(self.run, day, 40))
        self._make("report", [self._part(0, kind) for kind in (*PARTS, "slates")]
                   + [self.histories[0]])
        self.promote(0)

    def night(
        self, deleted: Deletions | None = None, kind: EntryKind = EntryKind.PROMOTED
    ) -> int:
        """Spend a night; return the number of its release."""
        self.age(86_400)
        number, parent = len(self.histories), self.live[-1]
        opened = self._append(Entry(EntryKind.OPENED, f"r{parent:02}", detail={"events": None}))
        self._make("drop", [])
        day = day_of(self.run, [("b", "2", 50 + number), (f"new-{number}", "1", 50 + number)])
        self._publish(extend_histories(
            self.run, night_config(self.keep_layers), self.histories[parent], day,
            end_s=60 + number, deleted=Deletions.of({}) if deleted is None else deleted,
        ))
        *_, report = (self._make(each, [self.histories[-1]]) for each in JUDGED)
        old = self._make("exam_report", [self.histories[-1], report])
        if kind is EntryKind.PROMOTED:
            self.promote(number)
        self._append(replace(
            opened.ended(kind, (), {"report": report.uri, "old_report": old.uri}),
            release_id=f"r{number:02}",
        ))
        return number

    def promote(self, number: int) -> None:
        self.registry.promote(f"r{number:02}")
        self.live.append(number)

    def forget(self, keep_releases: int | None = 1, **options: Any) -> Forgotten:
        return forget(self.run, self.registry, self.ledger, keep_releases, **options)

    def age(self, seconds: float) -> None:
        """Let time pass for everything in the run."""
        for path in Path(self.run).rglob("*"):
            if path.is_file():
                os.utime(path, (path.stat().st_mtime - seconds,) * 2)

    def folders(self) -> set[str]:
        return set(storage.list_folders(self.run))

    def copy(self, folder: Path) -> "Nights":
        shutil.copytree(self.folder, folder)
        return replace(self, folder=folder)

    def check(self) -> None:
        """Fail unless every release is whole, and so is what it was made of."""
        for each in read_published(self.run, self.registry):
            self.registry.verify(each.release_id)
            for name in each.needs:
                open_artifact(storage.join(self.run, name)).verify()

    def tree(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*"))

    def _append(self, entry: Entry) -> Entry:
        numbered = replace(entry, night_id=len(self.ledger) + 1, at_s=int(time.time()))
        self.ledger.append(numbered)
        return numbered

    def _make(self, kind: str, inputs: list[Artifact]) -> Artifact:
        def write(uri: str) -> dict[str, Any]:
            users = [*events_by_user(self.histories[-1])] if self.histories else [GONE]
            storage.write_table(storage.join(uri, "users.parquet"), pa.table({"user_id": users}))
            storage.write_json(storage.join(uri, "sample.json"), users)
            return {}

        settings = {"number": len(self.histories), "live": len(self.live)}
        return artifacts.make(self.run, kind, settings, inputs, write)

    def _part(self, number: int, kind: str) -> Artifact:
        inputs = self.registry.read_manifest(f"r{number:02}").facts.inputs
        if kind in inputs:
            return open_artifact(f"{self.run}/{kind}-{inputs[kind]}")
        [name] = [each for each in self.folders() if each.startswith(f"{kind}-")]
        return open_artifact(f"{self.run}/{name}")

    def _publish(self, histories: Artifact) -> None:
        release_id = f"r{len(self.histories):02}"
        self.histories.append(histories)
        parts = [histories, *(self._make(kind, [histories]) for kind in PARTS)]
        for kind in WORK:
            self._make(kind, parts)
        self.registry.publish(
            release_id, {
                "users.parquet": histories.path("users.parquet"),
                "crm/users.parquet": parts[2].path("users.parquet"),
            }, {
                "inputs": {each.kind: each.key for each in parts}, "config": {},
                "base_model": {"name": "tiny", "files": {}}, "data_window": {}, "crm_key": "c",
                "mixing": "", "gate": "", "scope": "", "metrics": {},
            },
        )


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    """Return a first release and two nights, of which the second was held."""
    made = Nights(tmp_path / "world")
    made.train()
    made.night()
    made.night(kind=EntryKind.HELD)
    return made


def test_nothing_goes_before_a_night_has_ended_or_where_all_is_kept(
    tmp_path: Path, nights: Nights
) -> None:
    before = nights.tree()
    assert nights.forget(None) == Forgotten()
    first = Nights(tmp_path / "first")
    first.train()
    first.age(9e6)
    assert first.forget() == Forgotten()
    assert nights.tree() == before


def test_live_and_previous_stay_with_what_they_need_and_the_last_night_stays_whole(
    nights: Nights,
) -> None:
    nights.forget()
    nights.check()
    assert nights.registry.list() == ["r00", "r01", "r02"]       # previous, live, the newest
    held = {kind for name in nights.folders() for kind in [name.rpartition("-")[0]]}
    assert held == {
        "histories", "interactions", "drop", "report", *PARTS, *WORK, *JUDGED,
    }
    for kind, number in (*((kind, 1) for kind in (*WORK, "interactions", "drop", "exam")),
                         ("exam_report", 4), ("crm", 3), ("histories", 3), ("report", 1)):
        found = [each for each in nights.folders() if each.rpartition("-")[0] == kind]
        assert len(found) == number, kind
    assert nights.forget() == Forgotten()


def test_a_release_that_goes_takes_what_it_was_made_of(nights: Nights) -> None:
    number = nights.night()
    nights.forget()
    nights.check()
    assert nights.registry.list() == ["r01", f"r{number:02}"]
    base = nights.histories[0].uri
    assert open_artifact(base)                              # both lie upon it
    kinds = [each.rpartition("-")[0] for each in nights.folders()]
    assert {kind: kinds.count(kind) for kind in ("histories", "bank", "report")} == {
        "histories": 3, "bank": 2, "report": 0,
    }


def test_a_challenger_and_the_parent_of_an_interrupted_night_stay(nights: Nights) -> None:
    nights.registry.start_experiment(Experiment("r02", 0.5, True, 1))
    nights.ledger.append(Entry(EntryKind.OPENED, "r00", night_id=99, at_s=int(time.time())))
    nights.night()
    nights.night()
    nights.forget()
    nights.check()
    assert nights.registry.list() == ["r00", "r02", "r03", "r04"]


def test_what_would_go_goes(nights: Nights) -> None:
    nights.night()
    before = nights.tree()
    would = nights.forget(dry_run=True)
    assert nights.tree() == before
    assert nights.forget() == would
    assert [each.release_id for each in would.releases] == ["r00", "r02"]
    sizes = sum(path.stat().st_size for path in nights.folder.rglob("*") if path.is_file())
    assert would.size_bytes > sizes / 4


def test_names_that_no_stage_gives_and_outputs_of_other_kinds_stay(nights: Nights) -> None:
    key = "0123456789ab"
    strangers = [
        f"notes/{key}", f"days-{key}/a", f"crm-{key}.bak/a", "training/mine/a", "nights.html",
    ]
    for name in strangers:
        storage.write_bytes(f"{nights.run}/{name}", GONE.encode())
    storage.write_json(f"{nights.run}/scores-{key}/manifest.json", {"kind": "mine", "inputs": {}})
    storage.write_bytes(f"{nights.registry.root}/notes/a", b"x")
    storage.write_bytes(f"{nights.registry.root}/half/config.json", b"{}")      # being published
    nights.night()
    nights.forget()
    for name in (*strangers, f"scores-{key}/manifest.json"):
        assert storage.exists(f"{nights.run}/{name}"), name
    assert {"notes", "half"} < set(storage.list_folders(nights.registry.root))


def test_what_killed_processes_left_goes_once_a_night_has_ended(nights: Nights) -> None:
    key = "0123456789ab"
    for name in (f"crm-{key}/users.parquet", f"training/crm-{key}/x/weights.safetensors",
                 f"golden-{key}/draft/draft/crm/users.parquet", f"bank-{key}.claim/owner.json"):
        storage.write_bytes(f"{nights.run}/{name}", GONE.encode())
    storage.write_bytes(f"{nights.run}/prompts-{key}/manifest.json", b"{")      # damaged
    nights.forget()
    assert f"crm-{key}" in nights.folders()                 # newer than the night
    nights.age(8 * 86_400)
    nights.night()
    nights.forget()
    assert not [name for name in nights.folders() if key in name]
    assert storage.list_folders(f"{nights.run}/training") == []


def test_nights_of_another_registry_on_the_same_ledger_do_not_count(nights: Nights) -> None:
    nights.night()
    mine = nights.forget(dry_run=True)
    opened = Entry(EntryKind.OPENED, "r01", night_id=50, at_s=2**40, detail={"registry": "other"})
    nights.ledger += [opened, replace(opened.ended(EntryKind.HELD, (), {}), night_id=51)]
    assert nights.forget() == mine


def test_while_a_training_writes_its_older_outputs_stay(nights: Nights) -> None:
    nights.night()
    nights.age(9e6)
    with artifacts.claimed(f"{nights.run}/bank-0123456789ab"):
        assert nights.forget().folders == ()
    assert nights.forget().folders


def test_a_release_whose_manifest_cannot_be_read_keeps_everything(nights: Nights) -> None:
    nights.night()
    path = Path(nights.registry.folder("r02"), "manifest.json")
    path.write_text(path.read_text().replace("r02", "r22"))
    before = nights.tree()
    with pytest.raises(ChecksumError, match="r22"):
        nights.forget()
    assert nights.tree() == before


def test_a_promotion_meanwhile_keeps_a_release_and_what_it_needs(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.night()
    delete = Registry.delete

    def promoted_meanwhile(registry: Registry, release_id: str) -> bool:
        if release_id == "r00":
            registry.promote("r00")
        return delete(registry, release_id)

    monkeypatch.setattr(Registry, "delete", promoted_meanwhile)
    assert [each.release_id for each in nights.forget().releases] == ["r02"]
    assert nights.registry.live().release_id == "r00"
    nights.check()


def test_whoever_is_killed_leaves_nothing_that_looks_whole_and_the_next_one_ends_the_same(
    nights: Nights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.night()
    straight = nights.copy(tmp_path / "straight")
    assert straight.forget().folders
    expected, steps = straight.tree(), 0
    while True:
        world = nights.copy(tmp_path / f"killed-{steps}")
        done: list[str] = []

        def limited(delete: Any, limit: int, done: list[str]) -> Any:
            def step(uri: str) -> None:
                if len(done) == limit:
                    raise KeyboardInterrupt
                done.append(uri)
                delete(uri)
            return step

        with monkeypatch.context() as patch:
            for name in ("delete_file", "delete_folder"):
                patch.setattr(storage, name, limited(getattr(storage, name), steps, done))
            try:
                world.forget()
                break
            except KeyboardInterrupt:
                pass
        world.check()
        world.forget()
        assert world.tree() == expected
        shutil.rmtree(world.folder)
        steps += 3          # the manifest of an output goes in one step, its folder in the next
    assert steps > 30


@pytest.mark.parametrize(("keep_layers", "keep_releases", "first_nights"), [
    (1, 1, 0), (1, 3, 1), (2, 1, 2),
])
def test_a_deleted_user_is_masked_at_once_and_gone_from_every_file_in_so_many_nights(
    tmp_path: Path, keep_layers: int, keep_releases: int, first_nights: int
) -> None:
    nights = Nights(tmp_path / "world", keep_layers)
    nights.train()
    for _ in range(first_nights):
        nights.night()
        nights.forget(keep_releases)
    assert files_that_name(str(nights.folder), GONE)
    deleted = Deletions.of({GONE: 1_000_000, "somebody else": 7})
    for number in range(keep_layers + max(2, keep_releases)):
        made = nights.histories[nights.night(deleted)]
        nights.forget(keep_releases)
        assert GONE not in events_by_user(made), number
        users = [GONE, "b"]
        seen = [read_histories(made.uri, part, pa.array(users)) for part in range(PARTITIONS)]
        assert pa.concat_tables(seen)["user_id"].to_pylist() == ["b"]
        assert GONE not in storage.read_table(made.path("users.parquet"))["user_id"].to_pylist()
    assert files_that_name(str(nights.folder), GONE) == []
    nights.check()
    for _ in range(keep_layers + 1):                        # nobody is named anew, either
        nights.night(deleted)
        assert files_that_name(str(nights.folder), GONE) == []
