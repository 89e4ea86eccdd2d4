"""Which patches of the lattice are asked for."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from feature_store.errors import QueryError
from feature_store.identity import FeatureSetSpec, TokenKind

PatchChoice: TypeAlias = Sequence[int] | slice | np.ndarray[Any, Any]
PatchNumbers: TypeAlias = slice | np.ndarray[Any, Any]


def patch_numbers(spec: FeatureSetSpec, kind: TokenKind, choice: PatchChoice | None) -> PatchNumbers | None:
    """The patches that `choice` means, as numbers that NumPy takes; consecutive ones as a slice, which copies nothing.

    Args:
        spec: of the feature set.
        kind: of the tokens; only `patches` can be chosen among.
        choice: patch numbers in any order (row-major over the grid, from 0), a slice of them, or a mask of booleans of
            shape [patches] or [grid height, grid width]; None for all.

    Raises:
        QueryError: another token kind, no patch, one that does not exist, or a mask of another shape.
    """
    if choice is None:
        return None
    if kind != "patches":
        raise QueryError(
            f"patches were chosen among {kind!r} tokens; choose patches of kind 'patches', or leave it out."
        )
    numbers = _numbers(spec, choice)
    if not numbers.size:
        raise QueryError(
            f"no patch of 0..{spec.n_patches - 1} was chosen; choose at least one, or leave it out for all."
        )
    if (np.diff(numbers) == 1).all():
        return slice(int(numbers[0]), int(numbers[-1]) + 1)
    return numbers


def n_chosen(spec: FeatureSetSpec, patches: PatchNumbers | None) -> int:
    """How many patches a choice leaves of each row."""
    if patches is None:
        return spec.n_patches
    return len(range(*patches.indices(spec.n_patches))) if isinstance(patches, slice) else len(patches)


def _numbers(spec: FeatureSetSpec, choice: PatchChoice) -> np.ndarray[Any, Any]:
    if isinstance(choice, slice):
        return np.arange(spec.n_patches)[choice]
    given = np.asarray(choice)
    if given.dtype == bool:
        if given.shape not in {(spec.n_patches,), spec.grid}:
            raise QueryError(
                f"a mask of shape {given.shape} does not fit the patches; give one of shape ({spec.n_patches},) or "
                f"{spec.grid}."
            )
        return np.flatnonzero(given)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise QueryError(
            f"patches of shape {given.shape} and dtype {given.dtype}: give a list of patch numbers, or a mask of "
            "booleans."
        )
    if given.size and not 0 <= given.min() <= given.max() < spec.n_patches:
        wrong = given.min() if given.min() < 0 else given.max()
        raise QueryError(
            f"patch {wrong} does not exist: a row has patches 0 to {spec.n_patches - 1}, row-major over the grid; "
            "choose among them (none counts from the end)."
        )
    return given.astype(np.int64)
