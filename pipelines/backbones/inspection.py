"""What a checkpoint file is, said without loading it."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipelines.backbones.checkpoint import Checkpoint, read_checkpoint, read_tensor
from pipelines.backbones.formats import KeyFormat, Published, State, VitForm, recognise
from pipelines.backbones.hub_folder import folder_settings, weights_file
from pipelines.backbones.networks import build_network, fill_network, misfits, not_floating, own_rule
from pipelines.backbones.preprocessing import size_text
from pipelines.backbones.stated import assumptions, with_stated
from pipelines.backbones.weight_files import BackboneError

_NAMES_TOLD = 3
_REASON_CHARACTERS = 160


@dataclass(frozen=True, kw_only=True)
class CheckpointReport:
    """What a checkpoint file is, and how it will be loaded.

    Attributes:
        path: the file.
        form: family, size and the network that runs it.
        wrapper: keys around the network, outermost first.
        network: the name of the network that is taken, wrapper and prefix with dots between; `.` for the file itself.
        networks: the names of all networks in the file.
        passed_over: how many tensors are not taken, by network or group of names.
        left_unread: dotted names of pickled objects in the file, none of which is made.
        left_out: names in the file that are no part of the frozen network: heads, decoders, training.
        missing: names that the network needs and the file lacks.
        unexpected: names in the file that nothing is known of.
        other_shapes: names whose shapes are not the network's, with both shapes.
        other_types: names whose numbers are not floating, as a network's are.
        trouble: why tensors of the right names and shapes cannot be brought into the network, or None.
        state: the tensors under the network's names, on the meta device.
    """

    path: Path
    form: VitForm
    wrapper: tuple[str, ...]
    network: str
    networks: tuple[str, ...]
    passed_over: Mapping[str, int]
    left_unread: tuple[str, ...]
    left_out: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    other_shapes: tuple[str, ...]
    other_types: tuple[str, ...]
    trouble: str | None = None
    state: State = field(default_factory=dict, repr=False, compare=False)

    @property
    def loads(self) -> bool:
        """Whether the file fits the network, and says enough of it."""
        misfits = self.missing or self.unexpected or self.other_shapes or self.other_types
        return not (misfits or self.trouble is not None or self.form.undecided)

    def to_json(self) -> dict[str, Any]:
        """The report for machines."""
        form = {**asdict(self.form), "said": sorted(self.form.said), "assumed": list(assumptions(self.form))}
        return {
            "file": str(self.path),
            "name": self.form.name,
            **form,
            "image_size": list(self.form.image_size),
            "wrapper": list(self.wrapper),
            "network_taken": self.network,
            "networks": list(self.networks),
            "passed_over": dict(self.passed_over),
            "left_unread": list(self.left_unread),
            "left_out": list(self.left_out),
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "other_shapes": list(self.other_shapes),
            "other_types": list(self.other_types),
            "trouble": self.trouble,
            "loads": self.loads,
        }


def inspect_checkpoint(
    path: Path, *, family: str | None = None, network: str | None = None, arguments: Sequence[str] = ()
) -> CheckpointReport:
    """What a checkpoint file is, from its names and shapes.

    Args:
        path: a file that torch or safetensors wrote, or a folder of transformers.
        family: the only family to try; None for all.
        network: which network of the file, by its name or a part of it; None for the one that authors publish.
        arguments: what the user states of the network, as `NAME=VALUE`.

    Raises:
        BackboneError: no checkpoint, truncated, of no known family, or not as stated.
    """
    path = weights_file(path)
    checkpoint = read_checkpoint(path, device="meta", network=network)
    key_format, form = recognise(_published(path, checkpoint), file=str(path), family=family)
    form = with_stated(form, arguments)
    module = _network(form, path, n_tensors=len(checkpoint.tensors))
    converted = _converted(checkpoint, path, key_format, form)
    missing, unexpected, other_shapes = misfits(module, converted)
    other_types = not_floating(module, converted)
    fits = not (missing or unexpected or other_shapes or other_types)
    left_out = tuple(n for n in checkpoint.tensors if key_format.renamed(n).startswith(key_format.left_out))
    return CheckpointReport(
        path=path,
        form=form,
        wrapper=checkpoint.wrapper,
        network=checkpoint.network,
        networks=checkpoint.networks,
        passed_over=checkpoint.passed_over,
        left_unread=checkpoint.left_unread,
        left_out=left_out,
        missing=missing,
        unexpected=unexpected,
        other_shapes=other_shapes,
        other_types=other_types,
        trouble=_trouble(module, converted, form) if fits else None,
        state=converted,
    )


def _trouble(module: Any, state: State, form: VitForm, *, rule: str | None = None) -> str | None:
    """Why a file cannot be loaded: what loading does is done, without numbers, so that both say the same."""
    try:
        fill_network(module, state, form, rule=rule)
    except (KeyError, IndexError, ValueError, RuntimeError, TypeError, AttributeError, AssertionError) as error:
        return textwrap.shorten(f"{type(error).__name__}: {error}", _REASON_CHARACTERS, placeholder=" ...")
    return None


def _network(form: VitForm, path: Path, *, n_tensors: int) -> Any:
    """The network of a form on the meta device.

    Raises:
        BackboneError: timm has none of these sizes.
    """
    sizes = (
        f"{form.width} features, {form.depth} blocks, {form.heads} heads, a perceptron of {form.mlp_width} and patches "
        f"of {form.patch} pixels"
    )
    # A name such as `blocks.999999999.norm1.weight` would otherwise be built.
    if form.depth > n_tensors:
        raise BackboneError(f"weights {path} claim {sizes}, and hold {n_tensors} tensors; fetch the file again.")
    try:
        with torch.device("meta"):
            return build_network(form, form.image_size)
    except BackboneError:
        raise
    except Exception as error:  # timm asserts and raises as each layer pleases
        reason = " ".join(str(error).split())[:_REASON_CHARACTERS] or type(error).__name__
        raise BackboneError(
            f"weights {path} look like {form.title} with {sizes}, and timm builds no such network ({reason}); name the "
            "architecture that the file was saved from with --model."
        ) from error


def _converted(checkpoint: Checkpoint, path: Path, key_format: KeyFormat, form: VitForm) -> State:
    """The tensors under the network's names.

    Raises:
        BackboneError: tensors that belong together and cannot be joined.
    """
    try:
        return key_format.convert(checkpoint.tensors, form)
    except (KeyError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:_REASON_CHARACTERS]
        raise BackboneError(
            f"weights {path} look like {form.title}, and their shapes do not fit it ({reason})."
        ) from error


def _published(path: Path, checkpoint: Checkpoint) -> Published:
    """A file as formats see it; of its numbers only the position embedding is looked at."""
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    config, preprocessor = folder_settings(path)
    embedding = read_tensor(path, "pos_embed", network=checkpoint.network) if "pos_embed" in shapes else None
    return Published(
        shapes=shapes,
        wrapper=checkpoint.wrapper,
        prefix=checkpoint.prefix,
        outside=tuple(checkpoint.passed_over),
        beside=checkpoint.beside,
        sincos=embedding is not None and _is_sincos(embedding),
        config=config,
        preprocessor=preprocessor,
    )


def _is_sincos(embedding: torch.Tensor) -> bool:
    """Whether positions are MAE's waves: nothing for the class token, and at (0, 0) sines of 0 and cosines of 1."""
    if (
        not embedding.is_floating_point()
        or embedding.ndim != len(("one", "positions", "width"))
        or embedding.shape[1] < 2
        or embedding.shape[2] % 4
    ):
        return False
    origin = torch.tensor([0.0, 1.0, 0.0, 1.0]).repeat_interleave(embedding.shape[2] // 4)
    # Without a class token the patch at (0, 0) comes first.
    first, second = embedding[0, 0].float().cpu(), embedding[0, 1].float().cpu()
    return bool(torch.equal(first, origin) or (not first.any() and torch.equal(second, origin)))


def require_size(report: CheckpointReport, image_size: tuple[int, int], *, rule: str | None = None) -> None:
    """Refuse an input size to which the file's positions cannot be brought.

    Args:
        report: of the file.
        image_size: (height, width) of the input in pixels.
        rule: how positions are resampled, a name in `positions.RULES`; None for the family's own way.

    Raises:
        BackboneError: no whole number of patches, no such rule, or positions that cannot be resampled.
    """
    own_rule(report.form, rule)
    with torch.device("meta"):
        module = build_network(report.form, image_size)
    trouble = _trouble(module, report.state, report.form, rule=rule)
    if trouble is not None:
        raise BackboneError(
            f"--image-size {size_text(image_size)} does not suit {report.form.title}: its positions cannot be brought "
            f"there ({trouble}); leave it out."
        )


def require_fit(report: CheckpointReport) -> None:
    """Refuse a file whose tensors are not those of the network.

    Raises:
        BackboneError: such a file.
    """
    if report.loads:
        return
    if report.trouble is not None:
        raise BackboneError(
            f"weights {report.path} look like {report.form.title}, and cannot be brought into its network "
            f"({report.trouble}); name the architecture that the file was saved from with --model."
        )
    parts = [
        f"{len(names)} tensors {what} {list(names[:_NAMES_TOLD])}"
        for names, what in (
            (report.missing, "missing"),
            (report.unexpected, "unexpected"),
            (report.other_shapes, "of other shapes"),
            (report.other_types, "with numbers of a type that is not supported, not floating:"),
        )
        if names
    ]
    raise BackboneError(
        f"weights {report.path} look like {report.form.title}, and do not fit it: {', '.join(parts)}. "
        "`vitrine models inspect` tells all names."
    )
