"""A release and the items that were sent since -> the same release over today's catalogue.

Items that the release lacks stand behind its own in the order in which they first came, so that
every process gives them the same index. A changed item keeps its index; a withdrawn one does, too,
for the histories that hold it.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from threading import Lock

import numpy as np
from sqlalchemy import Engine

from engine.data.catalogue import Catalogue
from engine.models.text_encoder import BaseModelEncoder, TextEncoder, load_encoder
from engine.recommender.release import ItemsByValue, LoadedRelease
from engine.retrieval import index
from engine.retrieval.item_text import item_text
from engine.state.items import (
    StoredItem,
    items_since,
    items_to_embed,
    newest_revision,
    store_vectors,
)
from engine.types import FloatArray, IntArray

MAX_RELEASES = 2
EMBEDDED_TOGETHER = 32


class Feed:
    """Releases over today's catalogue; safe to use from several threads."""

    def __init__(self, database: Engine) -> None:
        self._database = database
        self._current: OrderedDict[str, tuple[LoadedRelease, LoadedRelease]] = OrderedDict()
        self._lock = Lock()

    def current(self, release: LoadedRelease, revision: int | None = None) -> LoadedRelease:
        """Return the release with all items sent so far, or at least those up to `revision`.

        The first call after a change pays for it: a copy of what is kept by item.
        """
        found = self._kept(release)
        if self._is_new_enough(found, revision):
            return found
        with self._lock:
            found = self._kept(release)
            changes = items_since(self._database, found.revision)
            found = with_items(found, changes, release.vectors_ID) if changes else found
            self._current[release.release_id] = release, found
            self._current.move_to_end(release.release_id)
            while len(self._current) > MAX_RELEASES:
                self._current.popitem(last=False)
        return found

    def _kept(self, release: LoadedRelease) -> LoadedRelease:
        base, current = self._current.get(release.release_id, (release, release))
        return current if base is release else release

    def _is_new_enough(self, release: LoadedRelease, revision: int | None) -> bool:
        if revision is not None:
            return release.revision >= revision
        with self._database.connect() as connection:
            return release.revision >= newest_revision(connection)


def with_items(
    release: LoadedRelease, changes: Sequence[StoredItem], own_vectors_ID: FloatArray
) -> LoadedRelease:
    """Return a release to which these changes came, in the order in which the items first came.

    `own_vectors_ID` are the text vectors that it was loaded with: a changed item has its own until
    its new text is read.
    """
    known = release.catalogue
    added = [each for each in changes if each.item.item_id not in known]
    catalogue = _with_texts(known, changes, added)
    places = np.array([catalogue.index_of(each.item.item_id) for each in changes])
    offered_I = np.pad(release.offered_I, (0, len(added)))
    offered_I[places] = [not each.item.is_withdrawn for each in changes]
    vectors_ID = _with_vectors(release, changes, places, own_vectors_ID)
    current = replace(
        release, offered_I=offered_I, revision=max(each.revision for each in changes)
    )
    changed = _changed(release, catalogue, vectors_ID, places)
    if len(changed) == 0:
        return current
    crm = release.crm.with_items(catalogue, vectors_ID, changed)
    retrieval_ID = np.pad(release.item_index.vectors_ID, ((0, len(added)), (0, 0)))
    retrieval_ID[changed] = crm.item_vectors(changed)
    is_implicit = release.source.label.kind == "implicit"
    half = release.language
    return replace(
        current, catalogue=catalogue, crm=crm,
        item_index=index.with_items(release.item_index, retrieval_ID, changed),
        popularity=release.popularity.with_unseen(len(added), implicit=is_implicit),
        items_by_value=_with_values(release.items_by_value, known, catalogue, changed),
        language=half and replace(half, prompts=half.prompts.with_items(catalogue, vectors_ID)),
    )


def embed_items(database: Engine, release: LoadedRelease) -> int:
    """Give vectors to the items that lack those of this release's encoder; return how many.

    The release must hold its language model. What is done stays done where it is stopped.
    """
    encoder, total = None, 0
    key, names = release.item_texts.encoder, release.catalogue.fields
    while items := items_to_embed(database, key, EMBEDDED_TOGETHER):
        encoder = encoder or text_encoder(release)
        texts = [
            item_text(
                each.item.title or each.item.item_id,
                {name: each.item.fields.get(name, ()) for name in names},
            )
            for each in items
        ]
        total += store_vectors(database, key, items, encoder.encode(texts))
    return total


def text_encoder(release: LoadedRelease) -> TextEncoder:
    """Return what makes raw vectors: the base model without its bank, or an encoder of its own."""
    half = release.language
    if half is None:
        raise ValueError(f"release {release.release_id!r} was loaded without its language model")
    if release.item_texts.config.encoder == "base_model":
        return BaseModelEncoder(half.prompts.encoder.tokenizer, half.model.base)
    return load_encoder(release.item_texts.config, half.base_model)


def _with_texts(
    known: Catalogue, changes: Sequence[StoredItem], added: Sequence[StoredItem]
) -> Catalogue:
    """Return the catalogue with new items behind it and the texts that were sent."""
    if not added and all(each.item.title is None for each in changes):
        return known
    catalogue = Catalogue(
        [*known.item_ids, *(each.item.item_id for each in added)],
        [*known.titles, *(each.item.item_id for each in added)],
        {name: [*column, *[()] * len(added)] for name, column in known.fields.items()},
    )
    for each in changes:
        if each.item.title is None:
            continue
        place = catalogue.index_of(each.item.item_id)
        catalogue.titles[place] = each.item.title
        for name, column in catalogue.fields.items():
            column[place] = each.item.fields.get(name, ())
    return catalogue


def _with_vectors(
    release: LoadedRelease, changes: Sequence[StoredItem], places: IntArray,
    own_vectors_ID: FloatArray,
) -> FloatArray:
    """Return the text vectors; zeros for a new item that has none yet."""
    texts, known = release.item_texts, release.vectors_ID
    size = max(len(known), int(places.max()) + 1)
    wanted = np.zeros((len(changes), known.shape[1]), np.float32)
    is_own = places < len(own_vectors_ID)
    wanted[is_own] = own_vectors_ID[places[is_own]]
    raw = {number: each.vector_H for number, each in enumerate(changes)
           if each.vector_H is not None and each.encoder == texts.encoder}
    if raw:
        wanted[list(raw)] = texts.projector.project(np.stack(list(raw.values())))
    if size == len(known) and np.array_equal(known[places], wanted):
        return known
    vectors_ID = np.pad(known, ((0, size - len(known)), (0, 0)))
    vectors_ID[places] = wanted
    return vectors_ID


def _changed(
    release: LoadedRelease, catalogue: Catalogue, vectors_ID: FloatArray, places: IntArray
) -> IntArray:
    """Return which of these items differ from those of the release, ascending."""
    known = release.catalogue

    def is_same(item: int) -> bool:
        return (
            item < len(known)
            and catalogue.titles[item] == known.titles[item]
            and catalogue.values_of(item) == known.values_of(item)
            and np.array_equal(vectors_ID[item], release.vectors_ID[item])
        )

    return np.array(sorted(item for item in places.tolist() if not is_same(item)), np.int64)


def _with_values(
    known: ItemsByValue, before: Catalogue, after: Catalogue, changed: IntArray
) -> ItemsByValue:
    """Return the index of values in which changed items stand under what they have now."""
    found = {}
    for name, column in after.fields.items():
        old = before.fields[name]
        came: dict[str, list[int]] = {}
        left: dict[str, list[int]] = {}
        for item in changed.tolist():
            for value in set(column[item]):
                came.setdefault(value, []).append(item)
            for value in set(old[item]) if item < len(before) else ():
                left.setdefault(value, []).append(item)
        places: dict[str, IntArray] = dict(known.get(name, {}))
        for value in {*came, *left}:
            kept = np.setdiff1d(places.get(value, np.array([], int)), left.get(value, []))
            places[value] = np.union1d(kept, np.array(came.get(value, []), int))
        found[name] = {value: items for value, items in places.items() if len(items)}
    return found
