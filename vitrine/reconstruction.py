"""Reconstruction for the command line: the checkpoint's decoder, the views as the encoder saw them, pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from evaluators import (
    RECONSTRUCTION_REVISION,
    Answer,
    Arm,
    MaeDecoder,
    Pixels,
    ReconstructionParameters,
    ReconstructionResult,
    VarianceResult,
    arms_of,
    ask,
    decoded_views,
    drop_top_variance,
    encoder_depth,
    evaluate_reconstruction,
    question,
    read_decoder,
    require_decodable,
    resolve_parameters,
    views_to_decode,
)
from feature_store import FeatureSet, Selection, StoreError, read_manifest, read_selection
from feature_store.runs import stored_plan
from pipelines.backbones.checkpoint import read_state
from pipelines.backbones.held_weights import hold_weights
from pipelines.backbones.preprocessing import Preprocessing
from pipelines.backbones.weight_files import resolved
from pipelines.image_files import MAX_IMAGE_PIXELS, MOST_IMAGE_PIXELS, ReadingRules
from pipelines.meter import Meter
from pipelines.plan import view_columns
from pipelines.prefetch import PreparedView, SourceChangedError, prepare_views
from vitrine.exits import UsageError
from vitrine.named_paths import chosen, naming_options
from vitrine.pictures import draw_reconstruction
from vitrine.questions import ask_variance

# The paper takes 200 of 768; other widths get the same share.
_PAPERS_SHARE = 200 / 768
_DECODING_THREADS = 4
_VIEWS_SHOWN = 6
_PICTURE = "reconstruction.png"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a user asks of a decoder.

    Attributes:
        weights: a checkpoint with encoder and decoder.
        any_weights: go on where the store's tokens are of another file.
        n_dropped, selection: the features to take away; at most one of the two is given.
        any_layer: take a selection that was made on other tokens than the patches that are decoded.
        n_views, split, seed: see `ReconstructionParameters`.
        roots: the folder of the images, and folders outside it that links in it may lead into; they are needed where
            the answer is not kept yet, or is to be drawn.
    """

    weights: Path
    any_weights: bool = False
    n_dropped: int | None = None
    selection: str | None = None
    any_layer: bool = False
    n_views: int | None = None
    split: str | None = "auto"
    seed: int = 0
    roots: tuple[Path, ...] = ()


class Reconstruction:
    """One decoder over one feature set.

    Args:
        features: the feature set.
        asked: the question.

    Raises:
        UsageError: both ways of naming features, more features than there are, or a folder.
        BackboneError: the checkpoint cannot be read.
        DecoderError: it has no decoder of MAE's, or one that does not fit the tokens.
        StoreError: the tokens are of other weights, or class tokens or the last layer are not stored.
    """

    def __init__(self, features: FeatureSet, asked: Asked) -> None:
        if asked.n_dropped is not None and asked.selection is not None:
            raise UsageError("give at most one of --drop-top-variance M and --selection NAME.")
        self._features, self._asked = features, asked
        _refuse_folder(asked.weights)
        _check_dropped(features, asked.n_dropped)
        with hold_weights(asked.weights) as held:
            sha256, state = held.sha256, read_state(held)
        self._decoder: MaeDecoder = read_decoder(state)
        if not asked.any_weights:
            _require_same_weights(features, asked.weights, sha256)
        _refuse_windows(features)
        layer = features.layer_number(encoder_depth(state) or "last")
        require_decodable(features, self._decoder, layer)
        parameters = ReconstructionParameters(
            decoder_sha256=sha256, layer=layer, split=asked.split, n_views=asked.n_views, seed=asked.seed
        )
        self._parameters = resolve_parameters(features, parameters)
        self._rows, _ = views_to_decode(features, self._parameters)

    def ask(self, *, fresh: bool = False, progress: Callable[[int, int], None] | None = None) -> Answer:
        """The scores of every arm; `progress` is told how many views are done, of how many."""
        asked = question(self._features, "reconstruction", RECONSTRUCTION_REVISION, self._parameters, self._selection)
        return ask(
            self._features,
            asked,
            lambda: self._evaluate(progress),
            fresh=fresh,
        )

    def _evaluate(self, progress: Callable[[int, int], None] | None) -> ReconstructionResult:
        self.open_images()  # first, since the arms take a pass over the tokens
        return evaluate_reconstruction(
            self._features, self._parameters, decoder=self._decoder, arms=self._arms, pixels=self._counted(progress)
        )

    def open_images(self) -> None:
        """Find the folder of the images, so that a missing one is said before anything is computed.

        Raises:
            UsageError: it was not named.
            StoreError: it is no folder, or the tokens were not extracted from images.
        """
        _ = self._pixels

    def draw(self, folder: Path) -> Path:
        """Write some views beside what every arm gives of them; returns the picture's path."""
        chosen = self._rows[np.unique(np.arange(_VIEWS_SHOWN) * len(self._rows) // _VIEWS_SHOWN)]
        columns: dict[str, list[np.ndarray[Any, Any]]] = {"original": []}
        blocks = decoded_views(
            self._features, chosen, self._decoder, self._arms, layer=self._parameters.layer, pixels=self._pixels
        )
        words = arm_words(self._selection.width - len(self._selection.features))
        for block in blocks:
            columns["original"] += list(block.originals.numpy())
            for arm in self._arms:
                columns.setdefault(words[arm.name], []).extend(block.image(arm.name).numpy())
        path = folder / _PICTURE
        draw_reconstruction(columns, path=path)
        return path

    def _counted(self, progress: Callable[[int, int], None] | None) -> Pixels:
        """The views, their number told as they are asked for: a block is, when the one before it is done."""
        asked = 0

        def pixels(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            nonlocal asked
            if progress is not None:
                progress(asked, len(self._rows))
            asked += len(rows)
            return self._pixels(rows)

        return pixels

    @cached_property
    def _selection(self) -> Selection:
        if self._asked.selection is not None:
            selection = read_selection(self._features.root, self._asked.selection, any_layer=self._asked.any_layer)
            selection.check_fits(self._features.spec, layer=self._parameters.layer, kind="patches")
            return selection
        width = self._features.spec.n_features
        n_dropped = round(_PAPERS_SHARE * width) if self._asked.n_dropped is None else self._asked.n_dropped
        return drop_top_variance(
            self._features,
            self._variance("patches"),
            name=f"no-top-{n_dropped}",
            n_dropped=n_dropped,
            layer=self._parameters.layer,
            kind="patches",
        )

    @cached_property
    def _arms(self) -> tuple[Arm, ...]:
        return arms_of(
            self._selection,
            patches=self._variance("patches"),
            cls=self._variance("cls"),
            seed=self._parameters.seed,
        )

    def _variance(self, kind: str) -> VarianceResult:
        return VarianceResult.from_json(ask_variance(self._features, kind=kind, layer=self._parameters.layer).result)

    @cached_property
    def _pixels(self) -> Pixels:
        return stored_views(self._features, self._asked.roots)


def _refuse_folder(weights: Path) -> None:
    if weights.is_dir():
        raise UsageError(
            f"--weights {weights} is a folder, as transformers has them, whose decoder is not read; give a file such "
            "as mae_visualize_vit_base.pth, and extract with it too."
        )


def _check_dropped(features: FeatureSet, n_dropped: int | None) -> None:
    width = features.spec.n_features
    if n_dropped is not None and not 1 <= n_dropped < width:
        raise UsageError(
            f"cannot drop {n_dropped} of {width} features; give --drop-top-variance a number from 1 to {width - 1}."
        )


def _require_same_weights(features: FeatureSet, weights: Path, sha256: str) -> None:
    theirs = features.spec.identity.weights_sha256
    if theirs != sha256:
        raise UsageError(
            f"{features.name} was extracted with weights {theirs}, and {weights} is {sha256}: a decoder understands "
            f"its own encoder alone. Extract with --weights {weights}, or pass --any-weights to decode all the same."
        )


def _refuse_windows(features: FeatureSet) -> None:
    if features.spec.identity.preprocessing.get("windows") is not None:
        raise StoreError(
            f"{features.name} holds the means of tokens from windows, and a decoder takes those of one input; extract "
            "without windows."
        )


def arm_words(n_taken: int) -> dict[str, str]:
    """What to call each arm for people."""
    return {
        "untouched": "untouched",
        "zero": f"{n_taken} set to zero",
        "mean": f"{n_taken} set to their mean",
        "random zero": f"{n_taken} random ones set to zero",
    }


def stored_views(features: FeatureSet, roots: Sequence[Path]) -> Pixels:
    """Reads views from their image files as they were read when they were extracted, each held to its content key.

    Args:
        features: the feature set.
        roots: what the user named: the folder of the images, and folders that links in it may lead into.

    Raises:
        UsageError: the folder of the images was not named.
        StoreError: it is no folder, or the tokens were not extracted from images.
    """
    plan: Mapping[str, Any] = stored_plan(features.root, features.folder) or {}
    named = tuple(str(resolved(root)) for root in roots)
    folder = _folder_of(features, plan, named)
    rules = _rules_of(plan, named)
    try:
        preprocessing = Preprocessing.from_json(features.spec.identity.preprocessing)
    except (KeyError, TypeError) as error:
        raise StoreError(
            f"{features.name} does not say how its views became pixels ({error!r}), so it was not extracted here; "
            "`vitrine extract` makes a feature set that does."
        ) from error
    manifest = read_manifest(features.root, features.dataset, view_columns())

    def pixels(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        views = prepare_views(
            folder,
            manifest.take(rows).to_pylist(),
            preprocessing,
            batch_size=len(rows),
            threads=_DECODING_THREADS,
            meter=Meter(),
            rules=rules,
        )
        try:
            return np.stack([_pixels_of(view, features, rows) for view in views])
        except SourceChangedError as error:
            raise StoreError(
                f"{features.name} was not extracted from what stands in {folder} now: {str(error).partition(';')[0]}. "
                "Put the images back, or say where they are with --root FOLDER."
            ) from error

    return pixels


def _pixels_of(view: PreparedView, features: FeatureSet, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if view.pixels is None:
        raise StoreError(
            f"row {rows[view.place]} of {features.name} has tokens, but its image cannot be read now ({view.reason}); "
            "restore the image."
        )
    return view.pixels


def _rules_of(plan: Mapping[str, Any], named: Sequence[str]) -> ReadingRules:
    """How the last run read images, its links as far as the user named where they lead; defaults where nothing says."""
    max_pixels = plan.get("max_pixels")
    return ReadingRules(
        max_pixels=min(max_pixels, MOST_IMAGE_PIXELS) if isinstance(max_pixels, int) else MAX_IMAGE_PIXELS,
        link_roots=tuple(Path(path) for path in _paths_of(plan)[1:] if path in named),
    )


def _folder_of(features: FeatureSet, plan: Mapping[str, Any], named: Sequence[str]) -> Path:
    """The folder of the images among those that the user named; none is opened because the store names it."""
    theirs = _paths_of(plan)
    folder = chosen(theirs[0] if theirs else "", named)
    if folder is None and theirs:
        said, options = naming_options([("--root", path) for path in theirs])
        raise UsageError(
            f"the images of {features.name} are needed. The store names {said}, and a store may be a stranger's, so "
            "nothing is read on its word. If these are yours, or with the places where they are now, run the same "
            f"command with {options}"
        )
    if folder is None:
        raise UsageError(
            f"the images of {features.name} are needed, and no run says where they stood; name one --root FOLDER."
        )
    if not Path(folder).is_dir():
        raise StoreError(
            f"the images of {features.name} are not to be had: {folder!r} is no folder. Name it with --root."
        )
    return Path(folder)


def _paths_of(plan: Mapping[str, Any]) -> tuple[str, ...]:
    """What the store's plan names: the folder of the images, and those that links in it led into; not opened here."""
    root, links = plan.get("dataset_root"), plan.get("link_roots")
    if not isinstance(root, str) or not root:
        return ()
    return (root, *(path for path in links if isinstance(path, str) and path)) if isinstance(links, list) else (root,)
