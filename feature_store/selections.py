"""A stored choice of features, usable on any feature set of the same weights."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from feature_store import layout
from feature_store.canonical import digest_of
from feature_store.errors import SelectionError, StoreNotFoundError
from feature_store.identity import FeatureSetSpec
from feature_store.objects import ObjectRoot
from feature_store.records import Fields, read_record, record_bytes


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which features (columns) of a token are kept.

    Attributes:
        name: how users call it.
        features: the kept columns, ascending.
        width: features of a whole token.
        weights_sha256: of the model whose features these are.
        basis: digest of the PCA whose features these are; None for the model's own.
        layer, kind: of the tokens that the choice was made on.
        made_by: how it was made, e.g. {"drop_top_variance": 200, "variance_result": digest}.
    """

    name: str
    features: tuple[int, ...]
    width: int
    weights_sha256: str
    layer: int
    kind: str
    made_by: Mapping[str, Any]
    basis: str | None = None

    def __post_init__(self) -> None:
        if not self.features:
            raise SelectionError(f"selection {self.name!r} keeps none of {self.width} features; drop fewer.")
        for earlier, later in pairwise((-1, *self.features, self.width)):
            if earlier >= later:
                raise SelectionError(
                    f"selection {self.name!r} has feature {later} after {earlier}; features ascend within "
                    f"0..{self.width - 1}. Sort them and name each once."
                )

    @property
    def digest(self) -> str:
        """Sha256 of what the selection does; its name and how it was made are left out."""
        of_basis = [] if self.basis is None else [self.basis]
        return digest_of([list(self.features), self.width, self.weights_sha256, *of_basis])

    def check_fits(self, spec: FeatureSetSpec) -> None:
        """Refuse the use on a feature set whose feature numbers mean something else.

        Raises:
            SelectionError: other weights, another width, or features of another PCA or of none.
        """
        if self.basis != spec.identity.basis:
            mine, theirs = (
                "the model's own features" if basis is None else f"the features of PCA {basis[:8]}"
                for basis in (self.basis, spec.identity.basis)
            )
            raise SelectionError(
                f"selection {self.name!r} was made of {mine}, and {spec.model} has {theirs}; feature numbers mean "
                "something only within one of them. Make one with `vitrine prune` on this feature set."
            )
        if self.weights_sha256 != spec.identity.weights_sha256 or self.width != spec.n_features:
            raise SelectionError(
                f"selection {self.name!r} was made for weights {self.weights_sha256[:8]} with {self.width} features, "
                f"and {spec.model} has weights {spec.identity.weights_sha256[:8]} with {spec.n_features}; feature "
                "numbers mean something only within one model. Make one with `vitrine prune` on this feature set."
            )


def dropping(dropped: Sequence[int], width: int) -> tuple[int, ...]:
    """The features that stay when `dropped` go.

    Raises:
        SelectionError: a number outside 0..width-1, or one given twice.
    """
    gone = set(dropped)
    if len(gone) != len(dropped):
        twice = sorted({feature for feature in dropped if list(dropped).count(feature) > 1})
        raise SelectionError(f"features {twice[:5]} are dropped twice; name each once.")
    outside = sorted(feature for feature in gone if not 0 <= feature < width)
    if outside:
        raise SelectionError(f"features {outside[:5]} do not exist; this model has 0..{width - 1}.")
    return tuple(feature for feature in range(width) if feature not in gone)


def write_selection(root: ObjectRoot, selection: Selection) -> None:
    """Store a selection by name.

    Raises:
        SelectionError: another selection stands under the name; it may be in use, so it is not replaced.
    """
    path = layout.selection(selection.name)
    content = {**asdict(selection), "features": list(selection.features), "digest": selection.digest}
    if root.put_new(path, record_bytes(content)):
        return
    if read_selection(root, selection.name).digest != selection.digest:
        raise SelectionError(
            f"a selection {selection.name!r} with other features exists; choose another --name, or remove {path}."
        )


def read_selection(root: ObjectRoot, name: str) -> Selection:
    """The selection of that name.

    Raises:
        StoreNotFoundError: none; the error lists those there are.
        CorruptError: its file cannot be read.
    """
    path = layout.selection(name)
    try:
        value = read_record(root, path)
    except StoreNotFoundError as error:
        there = ", ".join(selection_names(root)) or "none yet"
        raise StoreNotFoundError(
            f"no selection {name!r} in {root.url} (there: {there}); `vitrine prune` makes one."
        ) from error
    fields = Fields(value, name=path, remedy="Remove it and make it again with `vitrine prune`.")
    try:
        selection = Selection(
            name=name,
            features=fields.integers("features"),
            width=fields.integer("width", least=1),
            weights_sha256=fields.text("weights_sha256"),
            layer=fields.integer("layer"),
            kind=fields.text("kind"),
            made_by=fields.mapping("made_by"),
            basis=fields.text("basis") if value.get("basis") is not None else None,
        )
    except SelectionError as error:
        raise fields.corrupt(f"it is no selection ({error})") from error
    if selection.digest != fields.text("digest"):
        raise fields.corrupt("the file was changed after it was written")
    return selection


def selection_names(root: ObjectRoot) -> list[str]:
    """The names of all selections, sorted."""
    return [name.removesuffix(".json") for name in root.list(layout.SELECTIONS) if name.endswith(".json")]
