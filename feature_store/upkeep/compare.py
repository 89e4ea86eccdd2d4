"""How two feature sets differ: streamed, in bounded memory."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, Shaped

from feature_store.arrays import token_layout
from feature_store.errors import StoreError
from feature_store.identity import TokenKind, differences
from feature_store.reader import FeatureSet

_BLOCK_BYTES = 16 << 20
_SHOWN_ROWS = 10
_RowPairs = tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]


@dataclass(frozen=True, kw_only=True)
class ArrayDifference:
    """How one layer and token kind differs between A and B, over the rows that are valid in both.

    Attributes:
        layer, kind: which array.
        rows: how many rows were compared.
        rows_differing: how many of them differ in any value.
        first_row: the first row of A that differs, or None.
        max_abs_difference: of any two values, in the units of the tokens.
        min_cosine: of any two tokens; 1 where there is none. Of two tokens of zeros it is 1, of one 0.
    """

    layer: int
    kind: TokenKind
    rows: int
    rows_differing: int
    first_row: int | None
    max_abs_difference: float
    min_cosine: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How two feature sets differ.

    Attributes:
        a, b: store and name of each.
        equal: whether both hold the same views in the same order, the same arrays, the same valid rows, and the same
            values in all of them. The identities may differ: then another way gave the same numbers.
        identity: the fields that differ, each with the values of A and B.
        aligned_by: `row`, or `view_id` where the views of the two datasets differ.
        rows_only_in_a, rows_only_in_b: committed rows that the other lacks, by count.
        invalid_differing: the first rows of A that are valid in one alone.
        n_invalid_differing: how many there are.
        arrays: for each layer and kind that both have.
        arrays_only_in_a, arrays_only_in_b: what the other lacks, or has in another shape.
    """

    a: str
    b: str
    equal: bool
    identity: tuple[tuple[str, Any, Any], ...]
    aligned_by: str
    rows_only_in_a: int
    rows_only_in_b: int
    invalid_differing: tuple[int, ...]
    n_invalid_differing: int
    arrays: tuple[ArrayDifference, ...]
    arrays_only_in_a: tuple[str, ...]
    arrays_only_in_b: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        return asdict(self)


def compare_feature_sets(a: FeatureSet, b: FeatureSet, *, block_bytes: int = _BLOCK_BYTES) -> Comparison:
    """Compare all that two feature sets have in common; rows of shards that are missing in one are counted.

    Args:
        a, b: in one store or two.
        block_bytes: how large the part of A that is held at a time may be; at least one row.

    Raises:
        StoreError: an array cannot be read, or views differ and a dataset is gone.
    """
    same_views = a.spec.identity.views_digest == b.spec.identity.views_digest
    rows_a, rows_b = (np.arange(a.spec.n_rows),) * 2 if same_views else _same_views(a, b)
    in_a, in_b = _committed(a), _committed(b)
    both = in_a[rows_a] & in_b[rows_b]
    rows_a, rows_b = rows_a[both], rows_b[both]
    valid_a, valid_b = a.valid[rows_a], b.valid[rows_b]
    invalid = rows_a[valid_a != valid_b]
    pairs = (rows_a[valid_a & valid_b], rows_b[valid_a & valid_b])
    arrays_a, arrays_b = _arrays(a), _arrays(b)
    common = [name for name, shape in arrays_a.items() if arrays_b.get(name) == shape]
    arrays = tuple(_compare_array(a, b, layer, kind, pairs, block_bytes) for layer, kind in common)
    lacking = [tuple(f"layer {layer} {kind}" for layer, kind in each if (layer, kind) not in common)
               for each in (arrays_a, arrays_b)]  # fmt: skip
    only_a, only_b = int(in_a.sum()) - len(rows_a), int(in_b.sum()) - len(rows_b)
    equal = not (only_a or only_b or len(invalid) or lacking[0] or lacking[1]) and same_views
    return Comparison(
        a=f"{a.root.url}#{a.name}",
        b=f"{b.root.url}#{b.name}",
        equal=equal and all(not each.rows_differing for each in arrays),
        identity=tuple(differences(a.spec, b.spec)),
        aligned_by="row" if same_views else "view_id",
        rows_only_in_a=only_a,
        rows_only_in_b=only_b,
        invalid_differing=tuple(invalid[:_SHOWN_ROWS].tolist()),
        n_invalid_differing=len(invalid),
        arrays=arrays,
        arrays_only_in_a=lacking[0],
        arrays_only_in_b=lacking[1],
    )


def _same_views(a: FeatureSet, b: FeatureSet) -> _RowPairs:
    """The rows of A and B that are the same view."""
    place_in_b = {view: row for row, view in enumerate(b.column("view_id"))}
    pairs = [(row, place_in_b[view]) for row, view in enumerate(a.column("view_id")) if view in place_in_b]
    table = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _committed(features: FeatureSet) -> np.ndarray[Any, Any]:
    rows = np.zeros(features.spec.n_rows, dtype=bool)
    for receipt in features.receipts.values():
        rows[receipt.start : receipt.stop] = True
    return rows


def _arrays(features: FeatureSet) -> dict[tuple[int, TokenKind], tuple[int, ...]]:
    identity = features.spec.identity
    return {(layer, kind): features.spec.row_shape(kind) for layer in identity.layers for kind in identity.token_kinds}


def _compare_array(
    a: FeatureSet, b: FeatureSet, layer: int, kind: TokenKind, pairs: _RowPairs, block_bytes: int
) -> ArrayDifference:
    rows_differing, first, largest, cosine = 0, None, 0.0, 1.0
    for rows_a, rows_b in _blocks(pairs, max(1, block_bytes // token_layout(a.spec, kind).row_bytes)):
        left, right = a.read(layer, kind, rows_a), b.read(layer, kind, rows_b)
        differs = (left != right).reshape(len(rows_a), -1).any(axis=1)
        if not differs.any():
            continue
        rows_differing += int(differs.sum())
        first = int(rows_a[differs][0]) if first is None else first
        of_a, of_b = (_tokens(each[differs]) for each in (left, right))
        # A value that is no number, as damage may make one, is infinitely far from any other.
        largest = max(largest, float(np.nan_to_num(np.abs(of_a - of_b), nan=np.inf, posinf=np.inf).max()))
        cosine = min(cosine, float(_cosines(of_a, of_b).min()))
    return ArrayDifference(
        layer=layer,
        kind=kind,
        rows=len(pairs[0]),
        rows_differing=rows_differing,
        first_row=first,
        max_abs_difference=largest,
        min_cosine=cosine,
    )


def _blocks(pairs: _RowPairs, n_rows: int) -> Iterator[_RowPairs]:
    for start in range(0, len(pairs[0]), n_rows):
        yield pairs[0][start : start + n_rows], pairs[1][start : start + n_rows]


def _tokens(rows: Shaped[np.ndarray, "rows ..."]) -> Float[np.ndarray, "tokens features"]:
    return rows.reshape(-1, rows.shape[-1]).astype(np.float64)


def _cosines(
    a: Float[np.ndarray, "tokens features"], b: Float[np.ndarray, "tokens features"]
) -> Float[np.ndarray, " tokens"]:
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    finite = np.isfinite(norms[0] * norms[1])
    product = norms[0] * norms[1]
    cosines = (a * b).sum(axis=1) / np.where(product > 0, product, 1)
    # Rounding may pass 1; two zero tokens are the same, whatever their angle.
    same = (norms[0] == 0) & (norms[1] == 0)
    return np.where(same, 1.0, np.where(finite, np.clip(cosines, -1.0, 1.0), 0.0))


def pair_names(a: list[str], b: list[str]) -> list[tuple[str, str]]:
    """Which feature sets of two stores are to be compared: those of one name, or the only one of each.

    Raises:
        StoreError: the two have no name in common.
    """
    common = sorted(set(a) & set(b))
    if common:
        return [(name, name) for name in common]
    if len(a) == len(b) == 1:
        return [(a[0], b[0])]
    raise StoreError(
        f"the stores have no feature set of one name ({', '.join(a) or 'none'}; {', '.join(b) or 'none'}); name one of "
        "each as STORE#NAME."
    )
