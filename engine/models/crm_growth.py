"""The parent's CRM -> maps and first weights of one that goes on from it; pure functions.

    known           the parent's row, wherever it stands now
    new user        the row of the unknown user
    new item        what its text foretells, by ridge regression on the items that the parent knew
    new value       the row of its field's "unknown"
    all else        the parent's weights, bit for bit

Numbers keep the parent's buckets: under other edges its codes would mean something else.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

import numpy as np

from engine.data.catalogue import Catalogue
from engine.models.crm_examples import TrainingCounts, count_item_values
from engine.models.crm_maps import CRMMaps
from engine.models.crm_vocabulary import FieldTable, FieldVocabulary, fit_field
from engine.storage import Tensors
from engine.types import FloatArray, IntArray

MIN_EVENTS = 5
"""Events of an item whose learned row tells what texts mean."""
ITEMS_PER_DIM = 2
"""Such items for each text dimension, without which a new item starts from the unknown one."""
PENALTIES = 10.0 ** np.arange(-6, 7)
"""Of the ridge regression, in units of the mean square of a text dimension over all items."""


def grow_maps(parent: CRMMaps, counts: TrainingCounts, catalogue: Catalogue) -> CRMMaps:
    """Return the parent's maps with what is new at the end, and with the statistics of `counts`.

    Whom the parent knew stays known, counted or not; a user without a history any more (deleted)
    and an item that has left the catalogue do not.
    """
    counted = {catalogue.item_ids[item] for item in np.flatnonzero(counts.items_I3[:, 0] > 0)}
    users = _grown(parent.user_ids, counts.user_ids, {*counts.user_ids, *counts.other_ids})
    items = _grown(parent.item_ids, counted, set(catalogue.item_ids[1:]))
    indices = [catalogue.index_of(item_id) for item_id in items]
    item_values = count_item_values(counts.items_I3, catalogue)
    return CRMMaps(
        users, items, _grow_fields(parent.user_fields, counts.user_values),
        _grow_fields(parent.item_fields, item_values),
        np.concatenate([np.zeros((1, 3)), counts.items_I3[indices]]),
    )


def _grown(known: Sequence[str], counted: Sequence[str] | Set[str], present: Set[str]) -> list[str]:
    """Return the known ids that are still there, in their order, then the new ones, sorted."""
    return [*(each for each in known if each in present), *sorted(set(counted).difference(known))]


def _grow_fields(table: FieldTable, values: Mapping[str, Mapping[str, int]]) -> FieldTable:
    return FieldTable([grow_field(field, values.get(field.name, {})) for field in table.fields])


def grow_field(field: FieldVocabulary, counts: Mapping[str, int]) -> FieldVocabulary:
    """Return a field with the values that it did not know at the end; one of buckets as it is."""
    if field.edges:
        return field
    if not field.values:        # the parent saw none: nothing is bound to its codes
        return fit_field(field.name, counts)
    return replace(field, values=(*field.values, *sorted(counts.keys() - set(field.values))))


def row_origins(parent_ids: Sequence[str], ids: Sequence[str]) -> IntArray:
    """Return the parent's row of each row, by id; 0, the unknown one, for row 0 and new ids."""
    rows = {each: row for row, each in enumerate(parent_ids, start=1)}
    return np.array([0, *(rows.get(each, 0) for each in ids)])


def code_origins(parent: FieldTable, table: FieldTable) -> IntArray:
    """Return the parent's code of each code; that of the field's "unknown" for new values."""
    origins, offset = [0], 1
    for old, new in zip(parent.fields, table.fields, strict=True):
        origins += [offset + (code if code < old.size else 0) for code in range(new.size)]
        offset += old.size
    return np.array(origins)


def grow_weights(
    weights: Tensors, parent: CRMMaps, maps: CRMMaps, texts_KT: FloatArray
) -> Tensors:
    """Return the first weights of a CRM with grown maps; `texts_KT` are by row of its item ids."""
    origins = {
        "user_ids.weight": row_origins(parent.user_ids, maps.user_ids),
        "item_ids.weight": row_origins(parent.item_ids, maps.item_ids),
        "user_codes.weight": code_origins(parent.user_fields, maps.user_fields),
        "item_codes.weight": code_origins(parent.item_fields, maps.item_fields),
    }
    grown = {**weights, **{name: weights[name][rows] for name, rows in origins.items()}}
    items_K, rows_KE = origins["item_ids.weight"], grown["item_ids.weight"]
    is_new_K, is_sure_K = items_K == 0, parent.counts_K3[items_K, 0] >= MIN_EVENTS
    is_new_K[0] = False
    if is_sure_K.sum() >= ITEMS_PER_DIM * texts_KT.shape[1]:
        rows_KE[is_new_K] = foretell(texts_KT[is_sure_K], rows_KE[is_sure_K], texts_KT[is_new_K])
    return grown


def foretell(known_KT: FloatArray, rows_KE: FloatArray, new_MT: FloatArray) -> FloatArray:
    """Return rows [M, E] by ridge regression with intercept from text vectors, in float64.

    Of PENALTIES, the one with the least generalised cross-validation error is taken (Golub, Heath
    and Wahba 1979): residual sum of squares / (K - 1 - trace)^2. Texts that tell nothing give every
    new item the mean row.
    """
    known_KT, rows_KE = known_KT.astype(np.float64), rows_KE.astype(np.float64)
    center_T, mean_E = known_KT.mean(axis=0), rows_KE.mean(axis=0)
    texts_KT, rows_KE = known_KT - center_T, rows_KE - mean_E
    squares_T, basis_TT = np.linalg.eigh(texts_KT.T @ texts_KT)
    squares_T = squares_T.clip(min=0)
    onto_TE = basis_TT.T @ (texts_KT.T @ rows_KE)
    shrunk_T1 = 1 / (squares_T + _penalty(squares_T, onto_TE, rows_KE))[:, None]
    rows_ME: FloatArray = mean_E + (new_MT - center_T) @ (basis_TT @ (shrunk_T1 * onto_TE))
    return rows_ME


def _penalty(squares_T: FloatArray, onto_TE: FloatArray, rows_KE: FloatArray) -> float:
    """Return the penalty of least error; the regression stands in the basis of its directions."""
    penalties = PENALTIES * (float(squares_T.mean()) or 1.0)        # 0 if all texts are equal
    total, onto_T = (rows_KE**2).sum(), (onto_TE**2).sum(axis=1)
    errors = []
    for penalty in penalties:
        shrunk_T = 1 / (squares_T + penalty)
        residual = total - (onto_T * (2 * shrunk_T - squares_T * shrunk_T**2)).sum()
        freedom = len(rows_KE) - 1 - (squares_T * shrunk_T).sum()
        errors.append(max(float(residual), 0.0) / freedom**2)
    return float(penalties[int(np.argmin(errors))])
