import json
from pathlib import Path

import pytest

from engine import storage
from engine.config import RetrievalConfig
from engine.errors import ChecksumError, ReleaseError, ReleaseNotFoundError
from engine.recommender.loading import load_release
from engine.retrieval.cells import CellIndex
from engine.retrieval.index import ExactIndex
from tests.tiny_release import TinyWorld, tiny_world


@pytest.fixture
def own_world(tmp_path: Path) -> TinyWorld:
    world = tiny_world(tmp_path)
    world.publish("r1")
    return world


def test_every_file_of_a_release_is_verified_by_both_halves(own_world: TinyWorld) -> None:
    folder = Path(own_world.registry.folder("r1"))
    names = [name for name in storage.list_files(str(folder)) if name != "manifest.json"]
    assert len(names) == 13
    for name in names:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        for with_llm in (True, False):
            with pytest.raises(ChecksumError, match=name.replace(".", r"\.")):
                own_world.load("r1", with_llm=with_llm)
        (folder / name).write_bytes(whole)
    own_world.load("r1")


def test_a_release_without_its_manifest_is_not_there(own_world: TinyWorld) -> None:
    (Path(own_world.registry.folder("r1")) / "manifest.json").unlink()
    with pytest.raises(ReleaseNotFoundError, match="'r1'"):
        own_world.load("r1")


def test_another_base_model_is_refused_by_the_half_that_needs_it(own_world: TinyWorld) -> None:
    config = Path(own_world.base.name) / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "rms_norm_eps": 0.5}))
    with pytest.raises(ReleaseError, match=r"config\.json"):
        own_world.load("r1")
    own_world.load("r1", with_llm=False)


def test_a_bank_that_learned_from_other_prompts_is_refused_by_the_half_that_reads_them(
    own_world: TinyWorld,
) -> None:
    language = own_world.load("r1").language
    assert language is not None
    for release_id, digest in (("same", language.prompts.digest()), ("other", "ff" * 32)):
        own_world.publish(release_id, template_sha256=digest)
    own_world.load("same")
    own_world.load("other", with_llm=False)
    with pytest.raises(ReleaseError, match="prompts"):
        own_world.load("other")


def test_a_bank_of_another_crm_is_refused(
    own_world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.tiny_release.CRM_KEY", "ffffffffffff")
    own_world.publish("r2")
    own_world.load("r2")
    bank = Path(own_world.root) / "parts/r2/bank/bank.json"
    values = json.loads(bank.read_text())
    assert values["crm_key"] == "ffffffffffff"
    files = {
        name: storage.join(str(own_world.root), "parts/r2", name)
        for name in storage.list_files(str(own_world.root / "parts/r2"))
    }
    bank.write_text(json.dumps({**values, "crm_key": "0123456789ab"}))
    facts = storage.read_json(storage.join(own_world.registry.folder("r2"), "manifest.json"))
    config = storage.read_json(storage.join(own_world.registry.folder("r2"), "config.json"))
    own_world.registry.publish("r3", files, {**facts["facts"], "config": config})
    with pytest.raises(ReleaseError, match="trained under CRM '0123456789ab'"):
        own_world.load("r3")


def test_a_large_catalogue_is_indexed_when_it_is_loaded(own_world: TinyWorld) -> None:
    for exact_items, kind in ((40, ExactIndex), (39, CellIndex)):
        loaded = load_release(
            own_world.registry, "r1", model_cache="", device="cpu", with_llm=False,
            retrieval=RetrievalConfig(exact_items=exact_items),
        )
        assert type(loaded.item_index) is kind
    assert type(own_world.load("r1", with_llm=False).item_index) is ExactIndex
