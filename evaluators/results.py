"""Result records: frozen, named as their evaluator is, each with the digests of what it was computed from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class SegmentationScores:
    """How well patch predictions, painted at full resolution, cover the masks of the test views.

    Attributes:
        miou: mean over the classes of TP / (TP + FP + FN), in 0..1; classes that occur in neither are left out.
        class_iou: by class name; None where the class occurs in neither truth nor prediction, or is not scored.
        pixel_accuracy: share of the pixels with a class that were predicted right.
        patch_accuracy: share of the patches with a class at their centre that were predicted right.
        ceiling_miou: what perfect patch labels would give: the limit that the patch grid sets.
        absent: the scored classes that no test pixel has, by name.

    A figure is None where nothing is there to count.
    """

    miou: float | None
    class_iou: Mapping[str, float | None]
    pixel_accuracy: float | None
    patch_accuracy: float | None
    ceiling_miou: float | None
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """How well whole images were classified.

    Attributes:
        accuracy: share of the test images of the scored classes that were predicted right; None where there is none.
        class_accuracy: by class name; None for a class without test images, or one that is not scored.
        absent: the scored classes that no test image has, by name.
    """

    accuracy: float | None
    class_accuracy: Mapping[str, float | None]
    absent: tuple[str, ...] = ()


Scores = SegmentationScores | ImageScores


@dataclass(frozen=True, kw_only=True)
class VarianceResult:
    """Population variance of every feature.

    Attributes:
        variance: by feature, in squared feature units.
        mean: by feature.
        order: features by falling variance; of equal ones the lower number first.
        n_tokens: tokens that were counted.
        split: of the rows, or None for all.
    """

    variance: tuple[float, ...]
    mean: tuple[float, ...]
    order: tuple[int, ...]
    n_tokens: int
    split: str | None

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {**asdict(self), **{name: list(getattr(self, name)) for name in ("variance", "mean", "order")}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "VarianceResult":
        """Read what `to_json` wrote; other entries are left alone."""
        lists = {name: tuple(value[name]) for name in ("variance", "mean", "order")}
        return cls(**lists, n_tokens=value["n_tokens"], split=value["split"])


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What k-NN or a linear probe scored on the test rows.

    Attributes:
        scores: the figures.
        n_train, n_test: patches or images in the bank or training set, and among the queries.
        n_features: features that were used, after the selection.
        train_split, test_split: names of the splits, or how rows were held out.
        details: what is particular to the evaluator, e.g. the strength that was chosen.
    """

    scores: Scores
    n_train: int
    n_test: int
    n_features: int
    train_split: str
    test_split: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values; the scores stand at the top."""
        rest = {name: value for name, value in asdict(self).items() if name not in {"scores", "details"}}
        return {**asdict(self.scores), **rest, **self.details}
