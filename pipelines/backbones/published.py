"""Published files as backbones: what a file is decides the network; no name of timm's is needed."""

from pathlib import Path
from typing import Any

import torch

from pipelines.backbones.architecture import has_class_token, norm_name, register_count
from pipelines.backbones.checkpoint import file_sha256, read_checkpoint
from pipelines.backbones.formats import FAMILIES, VitForm
from pipelines.backbones.inspection import inspect_checkpoint, require_fit
from pipelines.backbones.networks import build_network, fill_network, grid_of, network_arguments, own_rule
from pipelines.backbones.positions import position_text
from pipelines.backbones.preprocessing import Fit, ImageSize, Preprocessing
from pipelines.backbones.request import BackboneRequest
from pipelines.backbones.timm_vit import TimmBackbone, attention

AUTO = "auto"


def resolve_published(
    model: str,
    *,
    weights: Path,
    image_size: ImageSize | None = None,
    fit: Fit | None = None,
    compute_dtype: str = "float32",
    device: str = "cpu",
    position_embedding: str | None = None,
) -> BackboneRequest:
    """Find out what a file is, and that it can be loaded.

    Args:
        model: `auto`, or the name of a family.
        weights: the file.
        image_size, fit, compute_dtype, device, position_embedding: see `BackboneRequest`.

    Raises:
        BackboneError: no checkpoint, of no known family, or an input size that it does not take.
    """
    path = weights.expanduser().resolve()
    sha256 = file_sha256(path)
    report = inspect_checkpoint(path, family=None if model == AUTO else model)
    require_fit(report)
    form = report.form
    if position_embedding is not None:
        own_rule(form, position_embedding)
    with torch.device("meta"):
        build_network(form, image_size or form.image_size)
    return BackboneRequest(
        model=form.name,
        title=form.title,
        architecture=form.family,
        weights=str(path),
        weights_sha256=sha256,
        image_size=image_size,
        fit=fit,
        compute_dtype=compute_dtype,
        device=device,
        position_embedding=position_embedding,
    )


def describe_published(request: BackboneRequest) -> TimmBackbone:
    """All that an identity and a plan need of a published file, without its numbers: it cannot run.

    Raises:
        BackboneError: the file is not what it was.
    """
    form = inspect_checkpoint(Path(request.weights), family=request.architecture).form
    with torch.device("meta"):
        module = build_network(form, request.image_size or form.image_size)
    return _backbone(request, form, module)


def load_published(request: BackboneRequest, *, attention_kernel: str | None = None) -> TimmBackbone:
    """Load a published file.

    Args:
        request: from `resolve_published`.
        attention_kernel: `fused` or `explicit`; None for timm's own choice on this device.

    Raises:
        BackboneError: the file is not what it was, or has values that are not finite.
    """
    path = Path(request.weights)
    report = inspect_checkpoint(path, family=request.architecture)
    require_fit(report)
    form = report.form
    state = FAMILIES[form.family].convert(read_checkpoint(path).tensors, form)
    with attention(attention_kernel):
        module = build_network(form, request.image_size or form.image_size)
    fill_network(module, state, form, rule=request.position_embedding)
    if request.device.startswith("cuda"):
        # Otherwise the patch embedding, a convolution, would be computed with ten bits of mantissa in float32.
        torch.backends.cudnn.allow_tf32 = False
    return _backbone(request, form, module.to(request.device))


def _backbone(request: BackboneRequest, form: VitForm, module: Any) -> TimmBackbone:
    image_size = request.image_size or form.image_size
    fit: Fit = request.fit or ("squash" if form.squash else "crop")
    return TimmBackbone(
        request=request,
        module=module,
        preprocessing=Preprocessing(
            image_size=image_size,
            fit=fit,
            crop_fraction=form.crop_fraction,
            interpolation=form.interpolation,
            mean=form.mean,
            std=form.std,
            position_embedding=position_text(own_rule(form, request.position_embedding), form.grid, grid_of(module)),
        ),
        architecture={
            "library": "timm",
            "name": form.network,
            "family": form.family,
            "arguments": network_arguments(form, image_size),
            "norm": norm_name(module),
        },
        depth=form.depth,
        grid=grid_of(module),
        n_features=form.width,
        n_registers=register_count(module),
        has_cls=has_class_token(module),
    )
