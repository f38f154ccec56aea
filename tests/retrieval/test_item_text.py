"""Item texts and their projection."""

import numpy as np
import pytest

from engine.errors import ArtifactError
from engine.retrieval.item_text import fit_projector, item_text


def test_text_names_the_fields_that_have_values() -> None:
    fields = {"genres": ("Drama", "War"), "year": (), "country": ("US",)}
    assert item_text("Alien", fields) == "Alien. genres: Drama, War. country: US"
    assert item_text("Alien", {}) == "Alien"


def test_the_first_component_is_the_direction_of_largest_variance() -> None:
    raw = np.array([[10, 0, 1], [-10, 0, 1], [0, 1, 1], [0, -1, 1]], np.float32)
    projector = fit_projector(raw, 2)
    np.testing.assert_allclose(projector.mean_H, [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(projector.components_DH, [[1, 0, 0], [0, 1, 0]], atol=1e-6)
    np.testing.assert_allclose(
        projector.project(raw), [[1, 0], [-1, 0], [0, 1], [0, -1]], atol=1e-6
    )


def test_rows_are_unit_and_cosines_survive_a_full_projection() -> None:
    raw = np.random.default_rng(0).normal(3, 1, (40, 6)).astype(np.float32)
    rows = fit_projector(raw, 6).project(raw)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    centred = raw - raw.mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(rows @ rows.T, centred @ centred.T, atol=1e-4)


def test_more_dims_than_directions_pads_with_zeros() -> None:
    raw = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    rows = fit_projector(raw, 10).project(raw)
    assert rows.shape == (3, 10)
    assert not rows[:, 2:].any()


def test_an_item_equal_to_the_mean_has_no_direction() -> None:
    raw = np.array([[1, 0], [-1, 0], [0, 0]], np.float32)
    assert fit_projector(raw, 2).project(raw)[2].tolist() == [0, 0]


def test_vectors_of_another_encoder_are_refused() -> None:
    projector = fit_projector(np.eye(4, dtype=np.float32), 2)
    with pytest.raises(ArtifactError, match="width 3, the projector 4"):
        projector.project(np.zeros((1, 3), np.float32))
