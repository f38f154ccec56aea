"""What the scripts that run FuxiCTR share: tables, the description of features, a model."""

import importlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

from fuxictr.features import FeatureMap


def table(source: str, size: int) -> dict[str, Any]:
    """Return an embedding table; code 0 pads."""
    return {"source": source, "type": "categorical", "padding_idx": 0, "vocab_size": size}


def build(name: str, features: dict[str, Any], root: str, settings: dict[str, Any]) -> Any:
    """Return a model of FuxiCTR's LongCTR zoo over some features; it writes below `root`."""
    found = FeatureMap("rows", "")
    found.labels, found.default_emb_dim = ["label"], settings["embedding_dim"]
    found.features = OrderedDict(features)
    found.num_fields = found.get_num_fields()
    (Path(root) / "rows").mkdir()
    model = getattr(importlib.import_module(f"model_zoo.LongCTR.{name}.{name}"), name)
    return model(
        found, verbose=0, model_root=root, metrics=["AUC"], monitor="AUC", optimizer="adam",
        loss="binary_crossentropy", task="binary_classification", early_stop_patience=1, **settings,
    )
