"""What a model's own input size costs, where the user named none and it is far above the size that most models have."""

from feature_store.identity import FeatureSetSpec
from pipelines.backbones import BackboneRequest

_USUAL_SIDE = 224
# As many patches as 317 pixels have; the 256 of DINOv3 are not worth a word.
_FAR_ABOVE = 2.0


def native_size_note(request: BackboneRequest, spec: FeatureSetSpec) -> str | None:
    """One line that says the size and its cost, or None where a size was asked for or the model's own is usual.

    Args:
        request: what the user asked for.
        spec: the feature set that it makes.
    """
    height, width = spec.identity.preprocessing["image_size"]
    rows, columns = spec.grid
    usual = max(1, _USUAL_SIDE * rows // height) * max(1, _USUAL_SIDE * columns // width)
    if request.image_size is not None or rows * columns < _FAR_ABOVE * usual:
        return None
    n_prefix = 1 + spec.n_registers
    times = _work(rows * columns + n_prefix, spec.n_features) / _work(usual + n_prefix, spec.n_features)
    return (
        f"this model's own size is {height} x {width}: {rows * columns:,} patches a view, about {times:.0f} times the "
        f"work of {_USUAL_SIDE} ({usual} patches); --image-size {_USUAL_SIDE} is what most comparisons of ViTs take"
    )


def _work(n_tokens: int, n_features: int) -> int:
    """Multiplications of a block in units of the width: 12 matrices of the width squared, and twice all pairs."""
    return n_tokens * (12 * n_features + 2 * n_tokens)
