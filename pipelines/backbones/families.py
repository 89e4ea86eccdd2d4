"""Which family a model's name belongs to. A family's module is loaded when one of its models is asked for.

timm takes seconds to load, and trying out storage and pipelines with the null model needs none of it.
"""

from pathlib import Path
from typing import Unpack

from pipelines.backbones.backbone import Backbone
from pipelines.backbones.catalogue import AUTO, DEMO, NULL, TIMM, known
from pipelines.backbones.formats import FAMILIES
from pipelines.backbones.null import NO_KERNEL, load_null, resolve_null
from pipelines.backbones.preprocessing import ImageSize, Windows
from pipelines.backbones.request import BackboneRequest, RequestOptions
from pipelines.backbones.weight_files import BackboneError
from pipelines.backbones.windows import in_windows, one_window, sliding


def resolve_backbone(
    model: str,
    *,
    weights: Path | None = None,
    image_size: ImageSize | int | None = None,
    windows: Windows | None = None,
    sha256: str | None = None,
    **options: Unpack[RequestOptions],
) -> BackboneRequest:
    """Find architecture and checkpoint of a model's name.

    Args:
        model: `demo`, `null`, the name of any plain ViT of timm, with or without its tag, or, for a file in the form
            that its authors publish, `auto`, the name of its family, or a name in the catalogue.
        weights: a local .pth or .safetensors file; without it the hub's file is used. `null` takes none.
        image_size: (height, width) of the input in pixels, or the side of a square one; None for the model's own.
        sha256: of the weights, from who has just read them; None to read them for it.
        windows, options: see `BackboneRequest`.

    Raises:
        BackboneError: an unknown name, no plain ViT, a size that it does not take, or weights that are not there.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if windows is not None:
        request = resolve_backbone(model, weights=weights, image_size=windows.size, sha256=sha256, **options)
        return sliding(request, size, windows)
    if model == NULL:
        return resolve_null(weights=weights, image_size=size, **options)
    entry = known(model)
    is_published = entry is not None and entry.family != TIMM and model != DEMO
    if model == AUTO or model in FAMILIES or is_published:
        from pipelines.backbones.published import resolve_published

        if weights is None:
            where = "is what a file says" if entry is None else f"is published at {entry.where}"
            raise BackboneError(f"model {model!r} {where}; give the file with --weights.")
        return resolve_published(model, weights=weights, image_size=size, sha256=sha256, **options)
    from pipelines.backbones.timm_names import resolve_timm

    return resolve_timm(model, weights=weights, image_size=size, sha256=sha256, **options)


def load_backbone(request: BackboneRequest, *, attention_kernel: str | None = None) -> Backbone:
    """Load a backbone with its weights.

    Args:
        request: from `resolve_backbone`.
        attention_kernel: `fused` or `explicit`; None for the family's own choice on this device.

    Raises:
        BackboneError: not a ViT, an input size that it does not take, or weights that do not fit.
    """
    if request.windows is not None:
        return in_windows(load_backbone(one_window(request), attention_kernel=attention_kernel), request)
    if request.architecture == NULL:
        return load_null(request)
    if request.architecture in FAMILIES:
        from pipelines.backbones.published import load_published

        return load_published(request, attention_kernel=attention_kernel)
    from pipelines.backbones.timm_vit import load_timm

    return load_timm(request, attention_kernel=attention_kernel)


def describe_backbone(request: BackboneRequest) -> Backbone:
    """All that an identity and a plan need of a backbone, without loading its weights: it may not be able to run.

    Raises:
        BackboneError: not a ViT, an input size that it does not take, or a file that is no checkpoint.
    """
    if request.windows is not None:
        return in_windows(describe_backbone(one_window(request)), request)
    if request.architecture == NULL:
        return load_null(request)
    if request.architecture in FAMILIES:
        from pipelines.backbones.published import describe_published

        return describe_published(request)
    from pipelines.backbones.timm_vit import describe_timm

    return describe_timm(request)


def kernel_name(request: BackboneRequest) -> str:
    """Which attention kernel the model would use now: `fused`, `explicit`, or `none` where it has no attention."""
    if request.architecture == NULL:
        return NO_KERNEL
    from pipelines.backbones.timm_vit import kernel_name as timm_kernel_name

    return timm_kernel_name()
