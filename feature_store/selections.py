"""A stored choice of features, usable on tokens of one layer and kind of any feature set of the same weights."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from feature_store import layout
from feature_store.canonical import digest_of
from feature_store.errors import SelectionError, StoreNotFoundError, UnknownNameError
from feature_store.identity import FeatureSetSpec
from feature_store.nearest_name import did_you_mean
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
        any_layer: whether its user takes it for any layer and token kind; no part of what is stored.
    """

    name: str
    features: tuple[int, ...]
    width: int
    weights_sha256: str
    layer: int
    kind: str
    made_by: Mapping[str, Any]
    basis: str | None = None
    any_layer: bool = False

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

    def made_on(self, *, layer: int, kind: str) -> bool:
        """Whether the choice was made on these tokens."""
        return (layer, kind) == (self.layer, self.kind)

    def does_the_same_as(self, other: "Selection") -> bool:
        """Whether both keep the same features of the same tokens."""
        return self.digest == other.digest and self.made_on(layer=other.layer, kind=other.kind)

    def check_fits(self, spec: FeatureSetSpec, *, layer: int, kind: str) -> None:
        """Refuse the use on tokens that the choice says nothing about.

        Args:
            spec: of the feature set.
            layer, kind: of its tokens that are read; the mean of patches is of kind `patches`.

        Raises:
            SelectionError: other weights, another width, features of another PCA or of none; or, unless `any_layer`,
                another layer or token kind.
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
        if not self.any_layer and not self.made_on(layer=layer, kind=kind):
            raise SelectionError(
                f"selection {self.name!r} was made on {self.kind} of layer {self.layer}, and {kind} of layer {layer} "
                "are read, whose features vary otherwise. Make one with "
                f"`vitrine prune --tokens {kind} --layer {layer}`, or take it all the same with --any-layer."
            )


def made_elsewhere(selection: Selection | None, layer: int, kind: str) -> dict[str, str]:
    """What a record says of a selection that was taken for other tokens than it was made on; else nothing."""
    if selection is None or selection.made_on(layer=layer, kind=kind):
        return {}
    return {"selection_made_on": f"{selection.kind} of layer {selection.layer}"}


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
    del content["any_layer"]
    if root.put_new(path, record_bytes(content)):
        return
    there = read_selection(root, selection.name)
    if not there.does_the_same_as(selection):
        raise SelectionError(
            f"a selection {selection.name!r} with other features, or made on other tokens ({there.kind} of layer "
            f"{there.layer}), exists; choose another --name, or remove {path}."
        )


def read_selection(root: ObjectRoot, name: str, *, any_layer: bool = False) -> Selection:
    """The selection of that name.

    Args:
        root: of the store.
        name: of the selection.
        any_layer: take it for tokens of any layer and kind.

    Raises:
        UnknownNameError: none; the error lists those there are.
        CorruptError: its file cannot be read.
    """
    path = layout.selection(name)
    try:
        value = read_record(root, path)
    except StoreNotFoundError as error:
        names = selection_names(root)
        there = f"there: {', '.join(names) or 'none yet'}"
        raise UnknownNameError(
            f"no selection {name!r} in {root.url} ({there}){did_you_mean(name, names)}; `vitrine prune` makes one."
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
            any_layer=any_layer,
        )
    except SelectionError as error:
        raise fields.corrupt(f"it is no selection ({error})") from error
    if selection.digest != fields.text("digest"):
        raise fields.corrupt("the file was changed after it was written")
    return selection


def selection_names(root: ObjectRoot) -> list[str]:
    """The names of all selections, sorted."""
    return [name.removesuffix(".json") for name in root.list(layout.SELECTIONS) if name.endswith(".json")]
