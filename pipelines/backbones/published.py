"""Published files as backbones: what a file is decides the network; no name of timm's is needed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch
from jaxtyping import Float32

from pipelines.backbones.architecture import has_class_token, norm_name, register_count
from pipelines.backbones.backbone import Tokens
from pipelines.backbones.catalogue import AUTO, KnownCheckpoint, known, of_digest
from pipelines.backbones.checkpoint import read_state
from pipelines.backbones.formats import FAMILIES, VitForm
from pipelines.backbones.held_weights import hold_weights
from pipelines.backbones.hub_folder import weights_file
from pipelines.backbones.inspection import CheckpointReport, inspect_checkpoint, require_fit, require_size
from pipelines.backbones.networks import (
    build_network,
    fill_network,
    grid_of,
    network_arguments,
    positions_text,
)
from pipelines.backbones.preprocessing import Fit, ImageSize, Preprocessing
from pipelines.backbones.request import BackboneRequest, RequestOptions
from pipelines.backbones.same_network import published_record
from pipelines.backbones.stated import assumptions, network_taken, require_decided
from pipelines.backbones.timm_vit import TimmBackbone, attention, compute_float32_in_full
from pipelines.backbones.weight_files import BackboneError, file_sha256, resolved


class ScaleMaeBackbone(TimmBackbone):
    """Scale-MAE: the positions of each view's patches are metres on the ground."""

    def tokens_of(
        self,
        inputs: Float32[torch.Tensor, "views 3 h w"],
        layers: Sequence[int],
        *,
        class_attention: bool = False,
        ground_sample_distance_m: Float32[torch.Tensor, " views"] | None = None,
    ) -> Tokens:
        """See `Backbone.tokens_of`; a distance that is not known is taken for 1 m."""
        self.module.ground_sample_distance_m = ground_sample_distance_m
        return super().tokens_of(inputs, layers, class_attention=class_attention)


def resolve_published(
    model: str,
    *,
    weights: Path,
    image_size: ImageSize | None = None,
    sha256: str | None = None,
    **options: Unpack[RequestOptions],
) -> BackboneRequest:
    """Find out what a file is, and that it can be loaded.

    Args:
        model: `auto`, the name of a family, or a name in the catalogue.
        weights: the file.
        image_size, sha256, options: see `resolve_backbone`.

    Raises:
        BackboneError: no checkpoint, of no known family, of another size than its name says, or an input size that it
            does not take.
    """
    path = weights_file(resolved(weights))
    sha256 = sha256 or file_sha256(path)
    # A digest tells files apart that have the same names and shapes, such as the encoders of MAE and Scale-MAE.
    family = None if model == AUTO else model
    entry = known(model)
    if entry is None and (found := of_digest(sha256)) is not None and family in (None, found.family):
        entry = found
    report = inspect_checkpoint(
        path,
        family=family if entry is None else entry.family,
        network=options.get("network"),
        arguments=options.get("arguments", ()),
    )
    options["network"] = report.network if len(report.networks) > 1 else None
    form = report.form
    if entry is not None and _size(form) != _size(entry):
        raise BackboneError(
            f"weights {path} hold {form.title} ({_size(form)}), not {entry.name} ({_size(entry)}); give --model auto, "
            "or its file."
        )
    if entry is None:
        require_decided(form, str(path))
    else:
        report = replace(report, form=replace(form, undecided={}))
    require_fit(report)
    if image_size is None and entry is not None and entry.native_size != form.image_size[0]:
        # Whoever made it, such as by fine-tuning, ran it at another size than its positions are stored for.
        image_size = (entry.native_size, entry.native_size)
    require_size(report, image_size or form.image_size, rule=options.get("position_embedding"))
    return BackboneRequest(
        model=form.name if entry is None else entry.name,
        title=(entry.title if entry is not None else None) or form.title,
        architecture=form.family,
        weights=str(path),
        weights_sha256=sha256,
        image_size=image_size,
        # A name in the catalogue says whose file it is, and so all that the file does not.
        assumed=(*network_taken(options["network"]), *(assumptions(form) if entry is None else ())),
        **options,
    )


def describe_published(request: BackboneRequest) -> TimmBackbone:
    """All that an identity and a plan need of a published file, without its numbers: it cannot run.

    Raises:
        BackboneError: the file is not what it was.
    """
    form = _form(request, _inspected(request, Path(request.weights)))
    with torch.device("meta"):
        module = build_network(form, request.image_size or form.image_size)
    return _backbone(request, form, module)


def load_published(request: BackboneRequest, *, attention_kernel: str | None = None) -> TimmBackbone:
    """Load a published file.

    Args:
        request: from `resolve_published`.
        attention_kernel: `fused` or `explicit`; None for timm's own choice on this device.

    Raises:
        WeightsChangedError: the file is not the one that was resolved.
        BackboneError: what stands beside it is not what it was, or it has values that are not finite.
    """
    with hold_weights(Path(request.weights), request.weights_sha256) as path:
        report = _inspected(request, path)
        form = _form(request, report)
        require_fit(replace(report, form=form))
        state = FAMILIES[form.family].convert(read_state(path, network=request.network), form)
    with attention(attention_kernel):
        module = build_network(form, request.image_size or form.image_size)
    fill_network(module, state, form, rule=request.position_embedding)
    compute_float32_in_full(request.device)
    return _backbone(request, form, module.to(request.device))


def _inspected(request: BackboneRequest, path: Path) -> CheckpointReport:
    """What the file of a request is now."""
    return inspect_checkpoint(path, family=request.architecture, network=request.network, arguments=request.arguments)


def _size(of: VitForm | KnownCheckpoint) -> str:
    """What a name in the catalogue says of the tensors in its file."""
    registers = f", {of.registers} registers" if of.registers else ""
    gated = ", a gated perceptron" if of.plus else ""
    return f"{of.width} features, {of.depth} blocks, patches of {of.patch}{registers}{gated}"


def _form(request: BackboneRequest, report: CheckpointReport) -> VitForm:
    """What a file says of itself, and its name of how images are normalised."""
    entry, form = known(request.model), replace(report.form, undecided={})
    if entry is None:
        return form
    return replace(
        form,
        mean=form.mean if "mean" in form.said else entry.mean,
        std=form.std if "std" in form.said else entry.std,
    )


def _backbone(request: BackboneRequest, form: VitForm, module: Any) -> TimmBackbone:
    image_size = request.image_size or form.image_size
    fit: Fit = request.fit or ("squash" if form.evaluation.squash else "crop")
    backbone = ScaleMaeBackbone if form.network == "ScaleMae" else TimmBackbone
    return backbone(
        request=request,
        module=module,
        preprocessing=Preprocessing(
            image_size=image_size,
            fit=fit,
            crop_fraction=form.evaluation.crop_fraction(image_size),
            interpolation=form.evaluation.interpolation,
            mean=form.mean,
            std=form.std,
            position_embedding=positions_text(form, grid_of(module), rule=request.position_embedding),
        ),
        architecture=published_record(
            form.network,
            network_arguments(form, image_size),
            module,
            image_size,
            norm=norm_name(module),
            of=request.network,
        ),
        depth=form.depth,
        grid=grid_of(module),
        n_features=form.width,
        n_registers=register_count(module),
        has_cls=has_class_token(module),
        n_heads=form.heads,
    )
