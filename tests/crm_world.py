"""A small world for CRM tests: catalogue, vectors, users with histories, maps, a random model."""

import numpy as np
import torch

from engine.config import CRMConfig, SourceConfig
from engine.data.catalogue import Catalogue
from engine.data.profiles import Profiles
from engine.models.crm import CRM, CRMShape
from engine.models.crm_examples import TrainingCounts, count_partition
from engine.models.crm_features import num_levels
from engine.models.crm_maps import CRMMaps
from engine.models.crm_vocabulary import FieldTable, fit_field
from engine.types import FloatArray, History, Profile

ITEMS = 12
DIMS = 5
CRM_CONFIG = CRMConfig(
    embedding_dim=6, state_dim=7, hidden_dims=(11, 9), max_behaviors=4, max_history=20,
    max_recent=5, dropout=0.3, id_dropout=0.3, batch_size=8, lanes=2, retrieval_negatives=5,
)
SOURCE = SourceConfig(item_fields=("genres", "year"), user_fields=("gender", "age"))


def catalogue(items: int = ITEMS) -> Catalogue:
    genres = [(), *(("Drama",) if item % 2 else ("Comedy", "Crime") for item in range(items))]
    years = [(), *((str(1950 + item),) for item in range(items))]
    return Catalogue(
        ["", *(f"i{item}" for item in range(1, items + 1))],
        ["", *(f"Title {item}" for item in range(1, items + 1))],
        {"genres": genres, "year": years},
    )


def vectors(items: int = ITEMS) -> FloatArray:
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(items + 1, DIMS))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[0] = 0
    return rows.astype(np.float32)


def history(length: int, seed: int, items: int = ITEMS) -> History:
    rng = np.random.default_rng([seed, length])
    ratings = rng.integers(1, 6, length).astype(np.float32)
    return History(
        rng.integers(1, items + 1, length).astype(np.int32), ratings,
        (ratings >= 4).astype(np.int8), np.sort(rng.integers(0, 1000, length)),
    )


def histories(users: int = 6) -> dict[str, History]:
    return {f"u{user}": history(3 * user, user) for user in range(users)}


def profile(user_id: str, gender: str = "F", age: str = "30") -> Profile:
    return Profile(user_id, {"gender": (gender,), "age": (age,)})


def profiles(users: int = 6) -> Profiles:
    by_user = {f"u{n}": profile(f"u{n}", "MF"[n % 2], str(20 + n)) for n in range(users)}
    return Profiles(("gender", "age"), by_user)


def counts(users: int = 6, cut_s: int = 900) -> TrainingCounts:
    return count_partition(histories(users), profiles(users), ITEMS + 1, cut_s)


def maps(users: int = 6) -> CRMMaps:
    found = counts(users)
    known = np.flatnonzero(found.items_I3[:, 0] > 0)
    return CRMMaps(
        sorted(found.user_ids), [f"i{item}" for item in known],
        FieldTable([fit_field(name, found.user_values[name]) for name in ("gender", "age")]),
        FieldTable([
            fit_field("genres", {"Drama": 6, "Comedy": 6, "Crime": 6}),
            fit_field("year", {str(1950 + item): 1 for item in range(ITEMS)}),
        ]),
        np.concatenate([np.zeros((1, 3)), found.items_I3[known]]),
    )


def shape(known: CRMMaps) -> CRMShape:
    return CRMShape(
        num_users=len(known.user_ids) + 1, num_items=len(known.item_ids) + 1,
        num_user_codes=known.user_fields.size, num_item_codes=known.item_fields.size,
        num_levels=num_levels(SOURCE), text_dims=DIMS,
    )


def model(known: CRMMaps, config: CRMConfig = CRM_CONFIG, seed: int = 3) -> CRM:
    """Return a model whose every weight is random, so that no input can be ignored."""
    crm = CRM(shape(known), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in crm.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return crm
