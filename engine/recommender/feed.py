"""A release and the items that were sent since -> the same release over today's catalogue.

Items that the release lacks stand behind its own in the order in which they first came, so that
every process gives them the same index. A changed item keeps its index; a withdrawn one does, too,
for the histories that hold it.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock
from weakref import WeakKeyDictionary

import numpy as np
from cachetools import LRUCache
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from engine.data.catalogue import Catalogue
from engine.models.text_encoder import BaseModelEncoder, TextEncoder, load_encoder
from engine.recommender.release import ItemsByValue, LoadedRelease
from engine.retrieval import index
from engine.retrieval.item_text import item_text
from engine.state.items import (
    SentItem,
    StoredItem,
    items_since,
    items_to_embed,
    newest_revision,
    store_vectors,
)
from engine.types import FloatArray, IntArray

log = logging.getLogger(__name__)

EMBEDDED_TOGETHER = 32
READ_AT_ONCE = 1000
"""Most items of one call: those that come meanwhile are read by the next one, first."""
STORED_AFTER_S = 1.0
"""How often vectors are stored while many are made: each time is a change of the catalogue."""


class Feed:
    """Releases over today's catalogue; safe to use from several threads."""

    def __init__(self, database: Engine) -> None:
        self._database = database
        self._current: WeakKeyDictionary[LoadedRelease, LoadedRelease] = WeakKeyDictionary()
        self._lock = Lock()

    def current(self, release: LoadedRelease, revision: int | None = None) -> LoadedRelease:
        """Return the release with all items sent so far, or at least those up to `revision`.

        The first call after a change pays for it: a copy of what is kept by item. While the
        database is away it is the catalogue of before, unless a revision is asked for.
        """
        found = self._current.get(release, release)
        try:
            wanted = self._newest() if revision is None else revision
            return found if found.revision >= wanted else self._renewed(release, wanted)
        except OperationalError as error:
            if revision is not None:
                raise
            log.warning("release %s: the catalogue of before: %s", release.release_id, error)
            return found

    def _newest(self) -> int:
        with self._database.connect() as connection:
            return newest_revision(connection)

    def _renewed(self, release: LoadedRelease, wanted: int) -> LoadedRelease:
        with self._lock:
            found = self._current.get(release, release)
            if found.revision >= wanted:        # another call has paid
                return found
            encoder = release.item_texts.encoder
            changes = items_since(self._database, found.revision, encoder)
            if changes:
                found = with_items(found, changes, release)
                self._current[release] = found
        return found


def with_items(
    release: LoadedRelease, changes: Sequence[StoredItem], own: LoadedRelease
) -> LoadedRelease:
    """Return a release to which these changes came, in the order in which the items first came.

    `own` is the release as it was loaded: its vectors are those of its own texts, and of a changed
    one until that is read.
    """
    known = release.catalogue
    added = [each for each in changes if each.item.item_id not in known]
    catalogue = _with_texts(known, changes, added)
    places = np.array([catalogue.index_of(each.item.item_id) for each in changes])
    offered_I = np.pad(release.offered_I, (0, len(added)))
    offered_I[places] = [not each.item.is_withdrawn for each in changes]
    vectors_ID = _with_vectors(release, changes, places, own)
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


@dataclass(frozen=True, slots=True)
class Embedded:
    """What one call of `Embedder.embed` did."""

    items: int
    """Texts that it read."""
    is_all: bool
    """Whether no item lacks a vector now."""


class Embedder:
    """Reads the texts of sent items; one call at a time."""

    def __init__(self, database: Engine) -> None:
        self._database = database
        self._done: dict[str, int] = {}
        """By encoder: the revision up to which every item was read."""
        self._own: LRUCache[str, TextEncoder] = LRUCache(maxsize=2)
        """Encoders that are not a base model: the live release's and a challenger's."""

    def embed(self, release: LoadedRelease) -> Embedded:
        """Give vectors to items that lack those of a release's encoder, the newest changes first.

        The release must hold its language model. A text that cannot be read is logged and tried
        again by the next call. Where none of the first can be read, the others wait for it, too.
        """
        key = release.item_texts.encoder
        items = items_to_embed(self._database, key, self._done.get(key, 0), READ_AT_ONCE)
        encoder = self._encoder_of(release) if items else None
        stored_s, done = time.monotonic(), set[str]()
        read: list[tuple[StoredItem, FloatArray]] = []
        for start in range(0, len(items), EMBEDDED_TOGETHER):
            assert encoder is not None
            found = _read(encoder, release, items[start : start + EMBEDDED_TOGETHER])
            if not found and start == 0:
                break       # the encoder's fault: else each of 1000 texts is tried alone
            read += found
            done |= {each.item.item_id for each, _ in found}
            is_last = start + EMBEDDED_TOGETHER >= len(items)
            if read and (is_last or time.monotonic() - stored_s > STORED_AFTER_S):
                vectors = np.stack([vector_H for _, vector_H in read])
                store_vectors(self._database, key, [each for each, _ in read], vectors)
                read, stored_s = [], time.monotonic()
        failed = [each.revision for each in items if each.item.item_id not in done]
        is_all = len(items) < READ_AT_ONCE
        if is_all and items:
            self._done[key] = min(failed) - 1 if failed else max(each.revision for each in items)
        return Embedded(len(done), is_all and not failed)

    def _encoder_of(self, release: LoadedRelease) -> TextEncoder:
        """Return the base model without its bank, or an encoder of its own, which is kept."""
        half, texts = release.language, release.item_texts
        if half is None:
            raise ValueError(f"release {release.release_id!r} was loaded without language model")
        if texts.config.encoder == "base_model":
            return BaseModelEncoder(half.prompts.encoder.tokenizer, half.model.base)
        if texts.encoder not in self._own:
            self._own[texts.encoder] = load_encoder(texts.config, half.base_model)
        return self._own[texts.encoder]


def _read(
    encoder: TextEncoder, release: LoadedRelease, items: Sequence[StoredItem]
) -> list[tuple[StoredItem, FloatArray]]:
    """Return items with their vectors, without those that cannot be read."""
    names = release.catalogue.fields
    try:
        vectors = encoder.encode([
            item_text(each.item.title or each.item.item_id, each.item.values_of(names))
            for each in items
        ])
    except Exception as error:  # noqa: BLE001  whatever it is, other texts may be read
        if len(items) == 1:
            log.error("item %r cannot be read: %s", items[0].item.item_id, error)
            return []
        return [pair for each in items for pair in _read(encoder, release, [each])]
    return list(zip(items, vectors, strict=True))


def _with_texts(
    known: Catalogue, changes: Sequence[StoredItem], added: Sequence[StoredItem]
) -> Catalogue:
    """Return the catalogue with new items behind it and the texts that were sent."""
    if not any(_is_news(known, each.item) for each in changes):
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
        for name, values in each.item.values_of(catalogue.fields).items():
            catalogue.fields[name][place] = values
    return catalogue


def _is_news(known: Catalogue, item: SentItem) -> bool:
    """Tell whether a catalogue lacks an item or has another text of it."""
    if item.item_id not in known:
        return True
    place = known.index_of(item.item_id)
    texts = known.titles[place], known.values_of(place)
    return item.title is not None and (item.title, item.values_of(known.fields)) != texts


def _with_vectors(
    release: LoadedRelease, changes: Sequence[StoredItem], places: IntArray, own: LoadedRelease,
) -> FloatArray:
    """Return the text vectors; zeros for a new item that has none yet."""
    texts, known = release.item_texts, release.vectors_ID
    size = max(len(known), int(places.max()) + 1)
    wanted = np.zeros((len(changes), known.shape[1]), np.float32)
    is_own = places < len(own.vectors_ID)
    wanted[is_own] = own.vectors_ID[places[is_own]]
    raw = {number: each.vector_H for number, each in enumerate(changes)
           if each.vector_H is not None and len(each.vector_H) == len(texts.projector.mean_H)
           and _is_news(own.catalogue, each.item)}
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
