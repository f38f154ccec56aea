"""Histories and slates -> CRM examples, a trained CRM and its scores (Ray Data, Ray Train).

    crm_examples   maps.safetensors, maps.json, users.parquet, items.safetensors, examples/part-*,
                   at night start.safetensors: first weights
    crm            crm.safetensors, crm.json, users.parquet, curve.json
    crm_scores     scores/part-*.parquet: one row for each slate of bank, validation and test
"""

from dataclasses import asdict, fields
from functools import partial
from typing import Any

import numpy as np

from engine import artifacts, storage
from engine.artifacts import Artifact
from engine.config import EngineConfig
from engine.data.catalogue import Catalogue
from engine.data.roles import Roles
from engine.data.schema import part_name
from engine.errors import ConfigError, DataError
from engine.models.crm import CRMShape
from engine.models.crm_examples import (
    TrainingCounts,
    count_item_values,
    count_partition,
    merge_counts,
    score_slates,
    training_rows,
)
from engine.models.crm_features import FeatureSpace, num_levels
from engine.models.crm_maps import CRMMaps
from engine.models.crm_scorer import CRMScorer, write_crm
from engine.models.crm_vocabulary import FieldTable, fit_field
from engine.stages.crm_start import START, check_parent, grow_crm, night_settings, state_drift
from engine.stages.inputs import Inputs
from engine.stages.partitions import map_partitions
from engine.stages.trainer import RESOURCES, fit, forget
from engine.training.crm_loop import crm_loop, example_uri, write_rows
from engine.types import FloatArray, Window

CURVE = "curve.json"


def train_crm(
    run: str, config: EngineConfig, histories: Artifact, slates: Artifact, item_text: Artifact, *,
    windows: tuple[Window, ...] = (Window.CRM,), seed: int | None = None,
    parent: Artifact | None = None, roles: Roles | None = None,
) -> Artifact:
    """Return the artifact "crm", trained on the rows of `windows` and on nothing after them.

    `windows` are the first ones of the timeline: (CRM,) for the released, out-of-time model, (CRM,
    BANK) for the whole training window. `seed` stands in for `run.seed`. From a `parent`, a CRM
    with the files of a release, training goes on at the settings of a night. `roles`: see
    `make_examples`.
    """
    if parent is not None:
        check_parent(parent, config)
        config = night_settings(config)
    examples = make_examples(
        run, config, histories, slates, item_text, windows=windows, parent=parent, roles=roles
    )
    chosen = config.run.seed if seed is None else seed
    settings = {"crm": config.crm.settings(without=RESOURCES), "seed": chosen}
    start = None if parent is None else examples.path(START)
    write = partial(_train, config=config, examples=examples, seed=chosen, start=start)
    crm = artifacts.make(run, "crm", settings, [examples], write)
    forget(crm.uri)
    return crm


def make_examples(
    run: str, config: EngineConfig, histories: Artifact, slates: Artifact, item_text: Artifact, *,
    windows: tuple[Window, ...], parent: Artifact | None = None, roles: Roles | None = None,
) -> Artifact:
    """Return the artifact "crm_examples": features of every training row, shared by all seeds.

    With a parent its maps grow. With roles a slate's window comes from its role, so rows reach to
    the end of the timeline, and only those that train the CRM are counted.
    """
    if windows not in ((Window.CRM,), (Window.CRM, Window.BANK)):
        raise ConfigError(f"a CRM trains on (CRM,) or (CRM, BANK), got {windows}")
    settings = {
        "windows": [window.name for window in windows], "max_behaviors": config.crm.max_behaviors,
        "max_history": config.crm.max_history,
        "source": config.source.model_dump(mode="json", include={
            "rating_min", "rating_max", "rating_levels", "item_fields", "user_fields",
        }),
    }
    if roles is not None:
        settings["roles"] = roles.to_json()
    inputs = Inputs.of(config, histories, slates, item_text, roles)
    write = partial(_write_examples, inputs=inputs, windows=windows, parent=parent)
    sources = [histories, slates, item_text, *([] if parent is None else [parent])]
    return artifacts.make(run, "crm_examples", settings, sources, write)


def _write_examples(
    uri: str, *, inputs: Inputs, windows: tuple[Window, ...], parent: Artifact | None
) -> dict[str, Any]:
    cut_s = _cut_s(inputs, windows)
    partitions = inputs.partitions()
    counts = merge_counts(map_partitions(partial(_count, inputs, cut_s), partitions))
    catalogue = inputs.catalogue()
    grown: dict[str, Any] = {}
    if parent is None:
        maps = learn_maps(counts, catalogue, inputs.config)
    else:
        maps, grown = grow_crm(uri, parent, counts, catalogue, inputs.vectors())
    _write_maps(uri, maps, inputs, catalogue)
    rows = map_partitions(partial(_write_rows, uri, inputs, windows, cut_s), partitions)
    if not sum(rows):
        raise DataError("no slate lies in the windows that the CRM trains on")
    return {
        "row_counts": rows, "rows": sum(rows), "users": len(maps.user_ids),
        "items": len(maps.item_ids), "cut_s": cut_s,
        "shape": asdict(_shape(maps, inputs)), **grown,
    }


def _cut_s(inputs: Inputs, windows: tuple[Window, ...]) -> int:
    """Return the time from which on nothing is read or counted."""
    timeline = inputs.timeline()
    if inputs.roles is not None:
        return timeline.end_s + 1
    return timeline.t1_s if Window.BANK in windows else timeline.t0_s


def _count(inputs: Inputs, cut_s: int, partition: int) -> TrainingCounts:
    size = storage.read_table(storage.join(inputs.histories, "items.parquet"), ["item"]).num_rows
    histories = inputs.histories_at(partition)
    profiles = inputs.profiles(histories)
    return count_partition(histories, profiles, size + 1, cut_s, inputs.roles)


def learn_maps(counts: TrainingCounts, catalogue: Catalogue, config: EngineConfig) -> CRMMaps:
    """Return ID maps, field codes and statistics from what was counted before the cut."""
    known = np.flatnonzero(counts.items_I3[:, 0] > 0)
    item_values = count_item_values(counts.items_I3, catalogue)
    return CRMMaps(
        sorted(counts.user_ids), [catalogue.item_ids[item] for item in known],
        FieldTable([fit_field(name, counts.user_values.get(name, {}))
                    for name in config.source.user_fields]),
        FieldTable([fit_field(name, item_values[name]) for name in config.source.item_fields]),
        np.concatenate([np.zeros((1, 3)), counts.items_I3[known]]),
    )


def _shape(maps: CRMMaps, inputs: Inputs) -> CRMShape:
    return CRMShape(
        num_users=len(maps.user_ids) + 1, num_items=len(maps.item_ids) + 1,
        num_user_codes=maps.user_fields.size, num_item_codes=maps.item_fields.size,
        num_levels=num_levels(inputs.config.source), text_dims=inputs.vectors().shape[1],
    )


def _write_maps(uri: str, maps: CRMMaps, inputs: Inputs, catalogue: Catalogue) -> None:
    storage.write_tensors(storage.join(uri, "maps.safetensors"), maps.to_tensors())
    storage.write_json(storage.join(uri, "maps.json"), maps.to_json())
    storage.write_table(storage.join(uri, "users.parquet"), maps.users_table())
    space = _space(maps, inputs, catalogue)
    table = {field.name: getattr(space.items, field.name) for field in fields(space.items)}
    positives = space.statistics.counts_I3[:, 1]
    storage.write_tensors(
        storage.join(uri, "items.safetensors"), {**table, "positives": positives}
    )


def _space(
    maps: CRMMaps, inputs: Inputs, catalogue: Catalogue, counts_K3: FloatArray | None = None
) -> FeatureSpace:
    config = inputs.config
    return maps.space(catalogue, inputs.vectors(), config.crm, config.source, counts_K3)


def read_maps(uri: str) -> CRMMaps:
    """Read the maps of an examples folder."""
    return CRMMaps.read(
        storage.read_tensors(storage.join(uri, "maps.safetensors")),
        storage.read_json(storage.join(uri, "maps.json")),
        storage.read_table(storage.join(uri, "users.parquet")),
    )


def _write_rows(
    uri: str, inputs: Inputs, windows: tuple[Window, ...], cut_s: int, partition: int
) -> int:
    """Write one partition's rows with the item statistics of all other partitions."""
    slates = inputs.slates_at(partition, windows)
    if not slates:
        return 0
    maps, catalogue = read_maps(uri), inputs.catalogue()
    histories = inputs.histories_at(partition)
    profiles = inputs.profiles(histories)
    own = count_partition(histories, profiles, len(catalogue), cut_s, inputs.roles).items_I3
    known = [catalogue.index_of(item_id) for item_id in maps.item_ids]
    others = maps.counts_K3 - np.concatenate([np.zeros((1, 3)), own[known]])
    users = {user_id: row for row, user_id in enumerate(maps.user_ids, start=1)}
    space = _space(maps, inputs, catalogue, others)
    rows = training_rows(space, users, histories, profiles, slates, cut_s)
    assert rows is not None
    write_rows(example_uri(uri, partition), rows)
    return len(rows)


def _train(
    uri: str, *, config: EngineConfig, examples: Artifact, seed: int, start: str | None
) -> dict[str, Any]:
    crm, facts = config.crm, examples.facts
    if len(facts["row_counts"]) < crm.lanes:
        raise ConfigError(
            f"crm.lanes {crm.lanes} needs as many partitions; histories.num_partitions is "
            f"{len(facts['row_counts'])}"
        )
    settings = {
        "crm": crm.settings(), "shape": facts["shape"], "examples": examples.uri,
        "row_counts": facts["row_counts"], "seed": seed, "start": start,
    }
    checkpoint = fit(
        crm_loop, settings, artifact=uri, num_workers=crm.num_workers,
        threads_per_worker=crm.threads_per_worker, use_gpu=crm.use_gpu,
        max_failures=crm.max_failures,
    )
    weights = storage.read_tensors(storage.join(checkpoint, "weights.safetensors"))
    write_crm(uri, weights, read_maps(examples.uri), {
        "shape": facts["shape"], "crm": crm.settings(), "source": config.source.settings(),
    })
    curve = storage.read_json(storage.join(checkpoint, CURVE))
    storage.write_json(storage.join(uri, CURVE), [
        dict(zip(("step", "loss", "retrieval_loss"), point, strict=True)) for point in curve
    ])
    grown = {} if start is None else {
        **{name: facts[name] for name in ("new_users", "new_items", "new_values")},
        "state_drift": state_drift(examples, weights, crm),
    }
    return {
        "rows": facts["rows"], "cut_s": facts["cut_s"], "seed": seed,
        "parameters": int(sum(weight.size for weight in weights.values())),
        "ctr_loss": curve[-1][1] if curve else None, **grown,
    }


def score_crm(
    run: str, config: EngineConfig, histories: Artifact, slates: Artifact, item_text: Artifact,
    crm: Artifact,
) -> Artifact:
    """Return the artifact "crm_scores" of bank, validation and test slates."""
    inputs = Inputs.of(config, histories, slates, item_text)
    write = partial(_write_scores, inputs=inputs, crm=crm.uri)
    sources = [histories, slates, item_text, crm]
    return artifacts.make(run, "crm_scores", {}, sources, write)


def _write_scores(uri: str, *, inputs: Inputs, crm: str) -> dict[str, Any]:
    counts = map_partitions(partial(_score, uri, inputs, crm), inputs.partitions())
    return {"slates": sum(counts)}


def _score(uri: str, inputs: Inputs, crm: str, partition: int) -> int:
    scorer = CRMScorer.load(crm, inputs.catalogue(), inputs.vectors())
    slates = inputs.slates_at(partition, (Window.BANK, Window.VALIDATION, Window.TEST))
    table = score_slates(scorer, inputs.histories_at(partition), inputs.profiles(slates), slates)
    storage.write_table(storage.join(uri, part_name("scores", partition)), table)
    return int(table.num_rows)
