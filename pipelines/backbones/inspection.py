"""What a checkpoint file is, said without loading it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.backbones.checkpoint import BackboneError, Checkpoint, read_checkpoint, read_tensor
from pipelines.backbones.formats import Published, VitForm, recognise
from pipelines.backbones.hub_folder import folder_settings, weights_file
from pipelines.backbones.networks import build_network, misfits

_NAMES_TOLD = 3


@dataclass(frozen=True, kw_only=True)
class CheckpointReport:
    """What a checkpoint file is, and how it will be loaded.

    Attributes:
        path: the file.
        form: family, size and the network that runs it.
        wrapper: names around the tensors, outermost first.
        left_unread: dotted names of pickled objects in the file, none of which is made.
        left_out: names in the file that are no part of the frozen network: heads, decoders, training.
        missing: names that the network needs and the file lacks.
        unexpected: names in the file that nothing is known of.
        other_shapes: names whose shapes are not the network's.
    """

    path: Path
    form: VitForm
    wrapper: tuple[str, ...]
    left_unread: tuple[str, ...]
    left_out: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    other_shapes: tuple[str, ...]

    @property
    def loads(self) -> bool:
        """Whether the file fits the network."""
        return not (self.missing or self.unexpected or self.other_shapes)

    def to_json(self) -> dict[str, Any]:
        """The report for machines."""
        form = asdict(self.form)
        return {
            "file": str(self.path),
            "name": self.form.name,
            **form,
            "image_size": list(self.form.image_size),
            "wrapper": list(self.wrapper),
            "left_unread": list(self.left_unread),
            "left_out": list(self.left_out),
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "other_shapes": list(self.other_shapes),
            "loads": self.loads,
        }


def inspect_checkpoint(path: Path, *, family: str | None = None) -> CheckpointReport:
    """What a checkpoint file is, from its names and shapes.

    Args:
        path: a file that torch or safetensors wrote, or a folder of transformers.
        family: the only family to try; None for all.

    Raises:
        BackboneError: no checkpoint, truncated, or of no known family.
    """
    path = weights_file(path)
    checkpoint = read_checkpoint(path, device="meta")
    key_format, form = recognise(_published(path, checkpoint), file=str(path), family=family)
    converted = key_format.convert(checkpoint.tensors, form)
    with torch.device("meta"):
        module = build_network(form, form.image_size)
    missing, unexpected, other_shapes = misfits(module, converted)
    left_out = tuple(n for n in checkpoint.tensors if key_format.renamed(n).startswith(key_format.left_out))
    return CheckpointReport(
        path=path,
        form=form,
        wrapper=checkpoint.wrapper,
        left_unread=checkpoint.left_unread,
        left_out=left_out,
        missing=missing,
        unexpected=unexpected,
        other_shapes=other_shapes,
    )


def _published(path: Path, checkpoint: Checkpoint) -> Published:
    """A file as formats see it; of its numbers only the position embedding is looked at."""
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    config, preprocessor = folder_settings(path)
    embedding = read_tensor(path, "pos_embed") if "pos_embed" in shapes else None
    return Published(
        shapes=shapes,
        wrapper=checkpoint.wrapper,
        beside=checkpoint.beside,
        sincos=embedding is not None and _is_sincos(embedding),
        config=config,
        preprocessor=preprocessor,
    )


def _is_sincos(embedding: torch.Tensor) -> bool:
    """Whether positions are MAE's waves: nothing for the class token, and at (0, 0) sines of 0 and cosines of 1."""
    if embedding.ndim != len(("one", "positions", "width")) or embedding.shape[1] < 2 or embedding.shape[2] % 4:
        return False
    origin = torch.tensor([0.0, 1.0, 0.0, 1.0]).repeat_interleave(embedding.shape[2] // 4)
    # Without a class token the patch at (0, 0) comes first.
    first, second = embedding[0, 0].float().cpu(), embedding[0, 1].float().cpu()
    return bool(torch.equal(first, origin) or (not first.any() and torch.equal(second, origin)))


def require_fit(report: CheckpointReport) -> None:
    """Refuse a file whose tensors are not those of the network.

    Raises:
        BackboneError: such a file.
    """
    if report.loads:
        return
    parts = [
        f"{len(names)} tensors {what} {list(names[:_NAMES_TOLD])}"
        for names, what in (
            (report.missing, "missing"),
            (report.unexpected, "unexpected"),
            (report.other_shapes, "of other shapes"),
        )
        if names
    ]
    raise BackboneError(
        f"weights {report.path} look like {report.form.title}, and do not fit it: {', '.join(parts)}. "
        "`vitrine models inspect` tells all names."
    )
