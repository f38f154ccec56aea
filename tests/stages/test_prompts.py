"""Prompts are made anew where a setting that they depend on has changed."""

from typing import Any
from unittest.mock import Mock

import pytest

from engine.config import EngineConfig
from engine.stages import prompts


@pytest.mark.parametrize(("section", "values"), [
    ("crm", {"max_history": 50}), ("adapters", {"max_slates": 7}), ("prompt", {"history_size": 3}),
    ("evaluation", {"test_rows": 9}), ("bank", {"gate": "target"}), ("run", {"seed": 2}),
])
def test_what_the_sample_and_its_text_depend_on_is_in_the_key(
    section: str, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "make", lambda run, kind, settings, inputs, write: settings)
    monkeypatch.setattr(prompts, "make_builder", lambda *_: Mock(digest=lambda: "same"))
    artifacts = Mock(), Mock(), Mock()
    one, other = (
        prompts.build_prompts("run", EngineConfig.model_validate(each), *artifacts)
        for each in ({}, {section: values})
    )
    assert one != other
