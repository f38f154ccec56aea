"""histories + slates + item vectors -> tokenised prompts of the sampled slates.

    prompts/part-*.parquet    schema.PROMPTS, aligned with the partitions of the slates

The bank's window gives a random sample of slates (Few2Many), validation and test give whole users.
Each partition offers its own smallest keys, so the driver holds a few times the sample, never the
slates. Cost: one pass over the slates' ids, one over the sampled users' histories.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine import storage
from engine.artifacts import Artifact, make
from engine.config import EngineConfig
from engine.data.catalogue import Catalogue
from engine.data.sampling import Offer, reach_rows, sample_key, smallest, within_rows
from engine.data.schema import PROMPTS, part_name
from engine.errors import PromptError
from engine.models.base import base_model_digest, load_tokenizer
from engine.prompts.template import PromptBuilder
from engine.stages.inputs import Inputs
from engine.stages.items import VECTORS
from engine.stages.partitions import map_partitions
from engine.types import EVALUATED, GateInput, HistoryScope, Window


def build_prompts(
    run: str, config: EngineConfig, histories: Artifact, slates: Artifact, item_text: Artifact
) -> Artifact:
    """Sample slates of [T0, T1) and whole users of validation and test; write their prompts."""
    settings = {
        "prompt": config.prompt.settings(), "source": config.source.label.settings(),
        "base_model": base_model_digest(config.base_model) or config.base_model.name,
        "seed": config.run.seed, "max_slates": config.adapters.max_slates,
        "rows": [config.evaluation.validation_rows, config.evaluation.test_rows],
        "template": make_builder(config, histories, item_text).digest(),
        "max_history": config.crm.max_history,          # the text is chosen from as many events
    }
    if config.bank.gate is GateInput.TARGET and config.prompt.scope is HistoryScope.SLATE:
        settings["gate"] = config.bank.gate.value           # each candidate in its own prompt
    inputs = [histories, slates, item_text]
    write = partial(_write, config=config, histories=histories, slates=slates, item_text=item_text)
    return make(run, "prompts", settings, inputs, write)


def _write(
    folder: str, config: EngineConfig, histories: Artifact, slates: Artifact, item_text: Artifact
) -> Mapping[str, Any]:
    partitions = range(config.histories.num_partitions)
    offers = map_partitions(partial(_offers, config=config, slates=slates), partitions)
    chosen = _choose(config, offers)
    task = partial(
        _write_partition, folder=folder, config=config, histories=histories, slates=slates,
        item_text=item_text, chosen=chosen,
    )
    counts: Counter[str] = sum(map_partitions(task, partitions), Counter())
    return dict(counts)


# ----- the sample


def _offers(partition: int, config: EngineConfig, slates: Artifact) -> dict[int, list[Offer]]:
    """Return one partition's candidates for the sample of each window."""
    table = storage.read_table(
        slates.path(part_name("slates", partition)), ["slate_id", "user_id", "window", "items"]
    )
    sizes = pc.list_value_length(table["items"])
    table = table.drop_columns(["items"]).append_column("rows", sizes)
    bank = table.filter(pc.field("window") == int(Window.BANK)).to_pylist()
    offers = {int(Window.BANK): smallest(
        [
            (sample_key(config.run.seed, row["slate_id"]), row["slate_id"], row["rows"])
            for row in bank
        ],
        config.adapters.max_slates,
    )}
    for window, limit in zip(EVALUATED, _row_limits(config), strict=True):
        users: Counter[str] = Counter()
        for row in table.filter(pc.field("window") == int(window)).to_pylist():
            users[row["user_id"]] += row["rows"]
        keyed = [(sample_key(config.run.seed, user), user, rows) for user, rows in users.items()]
        offers[int(window)] = reach_rows(keyed, limit)
    return offers


def _row_limits(config: EngineConfig) -> tuple[int, int]:
    return config.evaluation.validation_rows, config.evaluation.test_rows


def _choose(
    config: EngineConfig, offers: Sequence[Mapping[int, list[Offer]]]
) -> dict[int, frozenset[str]]:
    """Return the sampled slate ids (bank) and user ids (validation, test) by window."""
    merged = {w: [o for part in offers for o in part[int(w)]] for w in (Window.BANK, *EVALUATED)}
    chosen = {int(Window.BANK): smallest(merged[Window.BANK], config.adapters.max_slates)}
    for window, limit in zip(EVALUATED, _row_limits(config), strict=True):
        chosen[int(window)] = within_rows(merged[window], limit)
    return {window: frozenset(offer[1] for offer in part) for window, part in chosen.items()}


# ----- the text


def _write_partition(
    partition: int,
    folder: str,
    config: EngineConfig,
    histories: Artifact,
    slates: Artifact,
    item_text: Artifact,
    chosen: Mapping[int, frozenset[str]],
) -> Counter[str]:
    """Write the prompts of one partition's sampled slates; return counts."""
    inputs = Inputs.of(config, histories, slates, item_text)
    rows = [row for row in inputs.slate_table(partition).to_pylist() if _is_chosen(row, chosen)]
    builder = make_builder(config, histories, item_text)
    profiles = inputs.profiles({row["user_id"] for row in rows})
    users = inputs.histories_at(partition)
    written, counts = [], Counter[str]()
    for row in sorted(rows, key=lambda row: str(row["slate_id"])):
        history = users[row["user_id"]].head(row["history_length"]).tail(config.crm.max_history)
        profile = profiles.of(row["user_id"])
        name = Window(row["window"]).name.lower()
        slot = 0
        try:
            prompts = builder.build_all(history, profile, np.array(row["items"]), config.bank.gate)
        except PromptError as error:
            place = f"slate {row['slate_id']!r} of user {row['user_id']!r}"
            raise PromptError(f"{place}: {error}") from error
        for built in prompts:
            blocks = [block.tolist() for block in built.prompt.blocks]
            written.append({
                "slate_id": row["slate_id"], "user_id": row["user_id"], "window": row["window"],
                "first_slot": slot, "prefix": built.prompt.prefix.tolist(), "blocks": blocks,
                "labels": row["labels"][slot : slot + len(blocks)], "cut": built.cut,
            })
            slot += len(blocks)
            counts[f"{name}_prompts"] += 1
            counts[f"{name}_rows"] += len(blocks)
            counts[f"{name}_tokens"] += len(built.prompt.prefix) + sum(map(len, blocks))
            counts["cut_prompts"] += built.cut > 0
    storage.write_table(
        storage.join(folder, part_name("prompts", partition)),
        pa.Table.from_pylist(written, schema=PROMPTS),
    )
    return counts


def _is_chosen(row: Mapping[str, Any], chosen: Mapping[int, frozenset[str]]) -> bool:
    identity = row["slate_id" if row["window"] == Window.BANK else "user_id"]
    return identity in chosen.get(row["window"], frozenset())


def make_builder(config: EngineConfig, histories: Artifact, item_text: Artifact) -> PromptBuilder:
    """Return the prompt builder of a run's catalogue."""
    catalogue = Catalogue.from_table(
        storage.read_table(histories.path("items.parquet")), config.source.item_fields
    )
    vectors = storage.read_tensors(item_text.path(VECTORS))["vectors"]
    tokenizer = load_tokenizer(config.base_model)
    return PromptBuilder(config.prompt, config.source, tokenizer, catalogue, vectors)
