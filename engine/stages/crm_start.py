"""The CRM of the live release -> settings, maps and first weights of a night's training.

    start.safetensors, in the folder of the examples: weights by name, rows by the grown maps
"""

from typing import Any

import numpy as np
import torch

from engine import storage
from engine.artifacts import Artifact
from engine.config import CRMConfig, EngineConfig
from engine.data.catalogue import Catalogue
from engine.errors import ConfigError
from engine.models.crm import CRM, CRMShape, to_tensors
from engine.models.crm_examples import TrainingCounts
from engine.models.crm_growth import grow_maps, grow_weights
from engine.models.crm_maps import CRMMaps
from engine.models.crm_scorer import load_weights, read_crm
from engine.training.crm_loop import example_uri, item_table_of, read_rows
from engine.types import FloatArray

START = "start.safetensors"
DRIFT_ROWS = 512
"""Training rows whose user states tell how far they have drifted."""
SIZES = {
    "crm": ("embedding_dim", "state_dim", "hidden_dims"),
    "source": ("rating_min", "rating_max", "rating_levels", "item_fields", "user_fields"),
}
"""Settings that give the weights their shape and meaning: children keep their parent's."""


def night_settings(config: EngineConfig) -> EngineConfig:
    """Return the settings of one night's CRM: one pass at a share of the rate.

    Its embeddings do not decay. AdamW shrinks every row in every step, whether or not its user or
    item is in the batch: by 0.025% in 100 steps of the default rates and by 9% in a year of such
    nights, which nothing would bring back where no events come any more. The decay is there to hold
    rows back that are fitted pass after pass; a night makes one pass at a tenth of the rate.
    """
    crm = config.crm.model_copy(update={
        "epochs": 1, "learning_rate": config.crm.learning_rate * config.night.crm_rate,
        "embedding_weight_decay": 0.0,
    })
    return config.model_copy(update={"crm": crm})


def check_parent(parent: Artifact, config: EngineConfig) -> None:
    """Raise ConfigError where the settings do not fit the parent's weights."""
    facts = storage.read_json(parent.path("crm.json"))
    for section, names in SIZES.items():
        now = getattr(config, section).settings()
        for name in names:
            if now[name] != facts[section][name]:
                raise ConfigError(
                    f"{section}.{name} is {now[name]}, the parent's CRM was trained with "
                    f"{facts[section][name]}: go on with that, or train from the beginning"
                )


def grow_crm(
    uri: str, parent: Artifact, counts: TrainingCounts, catalogue: Catalogue, vectors_IT: FloatArray
) -> tuple[CRMMaps, dict[str, Any]]:
    """Write the first weights to a folder; return the grown maps and what was new, as facts."""
    weights, known, _ = read_crm(parent.uri)
    width = weights["text.weight"].shape[1]
    if vectors_IT.shape[1] != width:
        raise ConfigError(f"item vectors have width {vectors_IT.shape[1]}, the parent's {width}")
    maps = grow_maps(known, counts, catalogue)
    rows = [0, *(catalogue.index_of(item_id) for item_id in maps.item_ids)]
    storage.write_tensors(
        storage.join(uri, START), grow_weights(weights, known, maps, vectors_IT[rows])
    )
    return maps, {
        "new_users": len(set(maps.user_ids).difference(known.user_ids)),
        "new_items": len(set(maps.item_ids).difference(known.item_ids)),
        "new_values": maps.user_fields.size - known.user_fields.size
        + maps.item_fields.size - known.item_fields.size,
    }


@torch.inference_mode()
def state_drift(examples: Artifact, weights: storage.Tensors, config: CRMConfig) -> float:
    """Return how far the user states that gates read have moved: mean of |new - old| / |old|.

    Old are those of the first weights; both are of the same training rows, spread over the
    partition that has most.
    """
    rows = read_rows(example_uri(examples.uri, int(np.argmax(examples.facts["row_counts"]))))
    picked = np.unique(np.linspace(0, len(rows) - 1, DRIFT_ROWS).astype(np.int64))
    batch = to_tensors(rows.batch(picked, config.max_recent), "cpu")
    items = storage.read_tensors(storage.join(examples.uri, "items.safetensors"))
    table = to_tensors(item_table_of(items), "cpu")
    model, states = CRM(CRMShape(**examples.facts["shape"]), config).eval(), []
    for found in (storage.read_tensors(examples.path(START)), weights):
        load_weights(model, found, examples.uri)
        states.append(model.user_states(batch, table))
    old_RD, new_RD = states
    moved_R = (new_RD - old_RD).norm(dim=1) / old_RD.norm(dim=1).clamp_min(1e-12)
    return float(moved_R.mean())
