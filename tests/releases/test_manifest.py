"""A manifest is read by the engine that wrote it and by later ones, unchanged or not at all."""

import json
import pickle
from typing import Any

import pytest

from engine import storage
from engine.errors import ChecksumError, ReleaseError, ReleaseFormatError
from engine.releases.manifest import (
    FORMAT_VERSION,
    BaseModelReference,
    FileEntry,
    ReleaseFacts,
    ReleaseManifest,
    dump_manifest,
    parse_facts,
    parse_manifest,
)

FACTS = ReleaseFacts(
    inputs={"crm": "c0ffee"}, base_model=BaseModelReference("tiny", {"tokenizer.json": "ab"}),
    data_window={"start_s": 0, "end_s": 9}, crm_key="c0ffee", mixing="sum_of_products",
    gate="user", scope="slate", metrics={"test/auc": 0.75}, template_sha256="cd",
)
MANIFEST = ReleaseManifest(
    FORMAT_VERSION, "first", 1_700_000_000, {"fusion.json": FileEntry("ef", 2)}, FACTS
)


def _signed(values: dict[str, Any]) -> dict[str, Any]:
    content = {name: value for name, value in values.items() if name != "sha256"}
    return {**content, "sha256": storage.sha256(storage.dump_json(content))}


def test_a_manifest_comes_back_from_json_and_pickle() -> None:
    values = json.loads(storage.dump_json(dump_manifest(MANIFEST)))
    assert parse_manifest(values) == MANIFEST
    assert pickle.loads(pickle.dumps(MANIFEST)) == MANIFEST


def test_a_newer_format_is_refused_by_name() -> None:
    values = _signed({**dump_manifest(MANIFEST), "format_version": FORMAT_VERSION + 6})
    message = f"format version {FORMAT_VERSION + 6}; this engine reads {FORMAT_VERSION}"
    with pytest.raises(ReleaseFormatError, match=message):
        parse_manifest(values)


def test_a_newer_format_is_named_whatever_else_it_holds() -> None:
    with pytest.raises(ReleaseFormatError, match="format version 99"):
        parse_manifest({"format_version": 99, "unheard": []})


@pytest.mark.parametrize("values", [[], None, "x", {}, {"format_version": "1"},
                                    {"format_version": True}, {"format_version": 0}])
def test_what_is_no_manifest_is_refused(values: Any) -> None:
    with pytest.raises(ReleaseFormatError, match="release format version"):
        parse_manifest(values)


def test_the_format_before_is_read_through_its_upgrade() -> None:
    old = dump_manifest(MANIFEST)
    old["facts"]["gate_input"] = old["facts"].pop("gate")

    def rename_gate(values: dict[str, Any]) -> dict[str, Any]:
        facts = dict(values["facts"])
        facts["gate"] = facts.pop("gate_input")
        return {**values, "facts": facts}

    upgrades = {FORMAT_VERSION: rename_gate}
    found = parse_manifest(_signed(old), format_version=FORMAT_VERSION + 1, upgrades=upgrades)
    assert found.format_version == FORMAT_VERSION + 1
    assert found.facts == FACTS


def test_upgrades_go_step_by_step_and_a_gap_ends_them() -> None:
    def identity(values: dict[str, Any]) -> dict[str, Any]:
        return values

    signed = dump_manifest(MANIFEST)
    upgrades = {FORMAT_VERSION: identity, FORMAT_VERSION + 1: identity}
    newest = FORMAT_VERSION + 2
    found = parse_manifest(signed, format_version=newest, upgrades=upgrades)
    assert found.format_version == newest
    del upgrades[FORMAT_VERSION]
    with pytest.raises(ReleaseFormatError, match=f"reads {newest - 1} to {newest}"):
        parse_manifest(signed, format_version=newest, upgrades=upgrades)


def test_a_changed_manifest_is_refused() -> None:
    values = dump_manifest(MANIFEST)
    values["facts"]["mixing"] = "product_of_sums"
    with pytest.raises(ChecksumError, match="'first' differs"):
        parse_manifest(values)


def test_a_malformed_manifest_names_the_entry() -> None:
    values = dump_manifest(MANIFEST)
    del values["facts"]["crm_key"]
    with pytest.raises(ReleaseFormatError, match=r"facts\.crm_key"):
        parse_manifest(_signed(values))


def test_facts_are_checked_by_name() -> None:
    values = {"inputs": {}, "mixing": 3, "surprise": 1}
    with pytest.raises(ReleaseError) as caught:
        parse_facts(values)
    for name in ("base_model", "crm_key", "mixing", "surprise"):
        assert name in str(caught.value)
