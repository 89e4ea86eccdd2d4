"""Which tokens of a feature set a probe is about. No torch: a stored answer is found by its subject alone."""

from dataclasses import dataclass, replace
from typing import Literal

from feature_store import FeatureSet, StoreError, TokenKind

On = Literal["auto", "patches", "cls", "mean"]
DEFAULT_TRAIN_SPLIT = "train"
# Which stored tokens each is made of.
KIND_READ: dict[str, TokenKind] = {"patches": "patches", "mean": "patches", "cls": "cls"}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Which tokens of a feature set a probe is about; part of the key of its result.

    Attributes:
        on: `patches`, `cls` or `mean`; `auto` takes patches where there are masks, else cls, else mean.
        layer: block number or `last`.
        train_split: the rows of the bank or training set.
        test_split: the rows that are scored; None takes the first of test, val, validation that exists.
        hold_out: share of the images of `train_split` to test on instead, for a dataset without a test split; of all
            images where the dataset has no splits at all. A sequence, or all copies of one image, stay together.
        seed: of the images held out.
        scored: classes that are scored, ascending; None for all. Truth of another class is left out of every score, as
            void is, but stays in the bank and the training set; predicting another class is wrong.

    Raises:
        ValueError: both a test split and a share to hold out, of which one would be ignored.
    """

    on: On = "auto"
    layer: int | str = "last"
    train_split: str = DEFAULT_TRAIN_SPLIT
    test_split: str | None = None
    hold_out: float | None = None
    seed: int = 0
    scored: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.hold_out is not None and self.test_split is not None:
            raise ValueError(
                f"--hold-out {self.hold_out:g} tests on training images, and --test-split {self.test_split!r} on those "
                "of a split; give one of the two."
            )


def resolve_subject(features: FeatureSet, subject: Subject) -> Subject:
    """`subject` with `auto` and `last` replaced by what they mean here, so that equal questions have equal keys.

    Raises:
        StoreError: no masks or labels for the subject, or a layer that is not stored.
    """
    return replace(subject, on=_resolve_on(features, subject.on), layer=features.layer_number(subject.layer))


def probed_kind(features: FeatureSet) -> TokenKind:
    """The token kind that probes of this dataset use by default; cls, or else patches, where none can be made."""
    try:
        return KIND_READ[_resolve_on(features, "auto")]
    except StoreError:
        return "cls" if "cls" in features.spec.identity.token_kinds else "patches"


def _resolve_on(features: FeatureSet, on: On) -> On:
    kinds = features.spec.identity.token_kinds
    dataset = features.dataset.spec
    fit = features.spec.identity.preprocessing.get("fit")
    has_masks = features.masks.any_mask
    if on == "auto":
        on = "patches" if has_masks and "patches" in kinds else "cls" if "cls" in kinds else "mean"
    if on == "patches" and not has_masks:
        raise StoreError(
            f"dataset {dataset.name!r} has no masks, so patches have no labels; use --on cls or --on mean."
        )
    if on == "patches" and fit == "crop" and not _crop_keeps_all(features):
        raise StoreError(
            f"{features.name} was extracted with a centre crop, so patches do not cover their masks; "
            "extract with --fit squash."
        )
    if on != "patches" and features.columns(["label"])["label"].null_count == features.spec.n_rows:
        raise StoreError(f"dataset {dataset.name!r} has no image labels; use --on patches, or a dataset with labels.")
    return on


def _crop_keeps_all(features: FeatureSet) -> bool:
    """Whether the centre crop cut nothing off: masked views have the input's proportions and are taken whole."""
    preprocessing = features.spec.identity.preprocessing
    height, width = preprocessing.get("image_size", (1, 1))
    return preprocessing.get("crop_fraction") == 1.0 and features.masks.all_shaped_as(height, width)
