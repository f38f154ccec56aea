"""Item texts through the tiny base model."""

from pathlib import Path

import numpy as np
import pytest

from engine import storage
from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.data.catalogue import Catalogue
from engine.data.deletions import Deletions
from engine.errors import ArtifactError, ConfigError
from engine.models.text_encoder import load_encoder
from engine.retrieval.item_text import Projector, item_text
from engine.stages.extended_histories import extend_histories
from engine.stages.histories import build_histories
from engine.stages.interactions import import_data
from engine.stages.items import VECTORS, embed_items, extend_item_text
from tests.generated import write_recbole
from tests.tiny_llama import tiny_base


def config_at(folder: Path) -> EngineConfig:
    base = tiny_base(folder / "base")
    return EngineConfig.model_validate({
        "source": {"path": str(write_recbole(folder / "source"))},
        "histories": {"num_partitions": 2}, "base_model": base.settings(),
        "item_text": {"dims": 8, "batch_size": 7},
    })


def test_every_item_has_the_unit_vector_of_its_own_text(ray_local: str, tmp_path: Path) -> None:
    config, run = config_at(tmp_path), str(tmp_path / "run")
    histories = build_histories(run, config, import_data(run, config))
    artifact = embed_items(run, config, histories)
    tensors = storage.read_tensors(artifact.path(VECTORS))
    catalogue = Catalogue.from_table(
        storage.read_table(histories.path("items.parquet")), config.source.item_fields
    )
    vectors = tensors["vectors"]
    assert vectors.shape == (len(catalogue), 8)
    assert not vectors[0].any()
    np.testing.assert_allclose(np.linalg.norm(vectors[1:], axis=1), 1, rtol=1e-5)
    encoder = load_encoder(config.item_text, config.base_model)
    projector = Projector(tensors["mean"], tensors["components"])
    for item in (1, 17, len(catalogue) - 1):          # a later item is placed in the same space
        text = item_text(catalogue.titles[item], {
            name: values[item] for name, values in catalogue.fields.items()
        })
        alone = projector.project(encoder.encode([text]))[0]
        np.testing.assert_allclose(alone, vectors[item], atol=2e-3)
    assert embed_items(run, config, histories).uri == artifact.uri


def test_a_night_encodes_new_items_and_new_texts_alone(
    ray_local: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = config_at(tmp_path), str(tmp_path / "run")
    base = build_histories(run, config, import_data(run, config))
    vectors = embed_items(run, config, base)
    night = _next_night(run, config, base, tmp_path)
    extended = extend_item_text(run, config, vectors, base, night)
    before, after = (
        storage.read_tensors(each.path(VECTORS)) for each in (vectors, extended)
    )
    assert after["mean"].tobytes() == before["mean"].tobytes()
    assert after["components"].tobytes() == before["components"].tobytes()
    count = len(before["vectors"])
    assert len(after["vectors"]) == count + 1
    rows = np.flatnonzero((after["vectors"][:count] != before["vectors"]).any(axis=1))
    ids = storage.read_table(night.path("items.parquet"))["item_id"].to_pylist()
    assert [ids[row - 1] for row in rows] == ["17"]
    assert extended.facts["encoded"] == 2
    encoder = load_encoder(config.item_text, config.base_model)
    raw = encoder.encode([item_text("Renamed", {"genres": ["Drama"], "year": ["1999"]})])
    alone = Projector(before["mean"], before["components"]).project(raw)[0]
    np.testing.assert_allclose(after["vectors"][rows[0]], alone, atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(after["vectors"][-1]), 1, rtol=1e-5)

    monkeypatch.setattr("engine.stages.items.map_with_actors", None)     # nobody needs an encoder
    same = extend_item_text(run, config, extended, night, night)
    assert same.facts["encoded"] == 0
    assert storage.read_tensors(same.path(VECTORS))["vectors"].tobytes() == (
        after["vectors"].tobytes()
    )
    assert extend_item_text(run, config, vectors, base, night) == extended
    with pytest.raises(ArtifactError, match="not of the first items"):
        extend_item_text(run, config, vectors, night, night)
    other = config.model_copy(update={
        "item_text": config.item_text.model_copy(update={"dims": 4}),
    })
    with pytest.raises(ConfigError, match="'dims': 8"):
        extend_item_text(run, other, vectors, base, night)


def _next_night(run: str, config: EngineConfig, base: Artifact, folder: Path) -> Artifact:
    """Return the histories after a day with an item of another text and a new one."""
    path = Path(write_recbole(folder / "day"))
    lines = [
        line for line in (path / "small.item").read_text().splitlines()
        if not line.startswith("17\t")
    ]
    lines += ["17\tRenamed\t1999\tDrama", "900\tNew\t2001\tComedy"]
    (path / "small.item").write_text("\n".join(lines) + "\n")
    day = config.model_copy(update={"source": config.source.model_copy(
        update={"path": str(path)}
    )})
    return extend_histories(
        run, day, base, import_data(run, day), end_s=10**9, deleted=Deletions.of({})
    )


def test_a_text_has_the_same_vector_alone_and_beside_a_longer_one(tmp_path: Path) -> None:
    config = config_at(tmp_path)
    encoder = load_encoder(config.item_text, config.base_model)
    together = encoder.encode(["Alien", "A much longer title, The (1995)", ""])
    np.testing.assert_allclose(encoder.encode(["Alien"])[0], together[0], atol=1e-5)
    assert np.isfinite(together).all()


@pytest.mark.parametrize(
    ("path", "match"), [(None, "encoder_path"), ("some/encoder", "pip install")]
)
def test_a_sentence_encoder_that_cannot_be_had_is_a_config_error(
    path: str | None, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.models.text_encoder.find_spec", lambda name: None)
    config = EngineConfig.model_validate({
        "item_text": {"encoder": "sentence_transformer", "encoder_path": path},
    })
    with pytest.raises(ConfigError, match=match):
        load_encoder(config.item_text, config.base_model)
