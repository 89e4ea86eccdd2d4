"""SimMIM (microsoft/SimMIM): the pre-training checkpoint, and the fine-tuned one, whose tensors are as BEiT's."""

from dataclasses import replace

from pipelines.backbones.formats import evaluation
from pipelines.backbones.formats.form import KeyFormat, Published, VitForm
from pipelines.backbones.formats.relative_tables import LEFT_OUT, NAMES, NEEDS, relative_form, without_indices
from pipelines.backbones.normalisation import IMAGENET_MEAN, IMAGENET_STD

# What its code saves beside the network, and BEiT's does not.
_BESIDE = frozenset({"config", "lr_scheduler", "max_accuracy"})


def _has_decoder(published: Published) -> bool:
    return any(name.split(".")[-1] == "decoder" for name in published.outside)


def _claims(published: Published) -> bool:
    """Its encoder has BEiT's names, under `encoder.` beside a decoder of one convolution, or beside its own keys."""
    return published.prefix == "encoder." or _has_decoder(published) or set(published.beside) >= _BESIDE


def _read(published: Published) -> VitForm | None:
    form = relative_form(
        published,
        family="simmim",
        name="SimMIM",
        normalisation=(IMAGENET_MEAN, IMAGENET_STD),
        evaluation=evaluation.SIMMIM,
    )
    if form is None or not _has_decoder(published):
        return form
    return replace(form, decoder={"depth": 1, "width": form.width})


SIMMIM = KeyFormat(
    family="simmim",
    needs=NEEDS,
    names=NAMES,
    claims=_claims,
    read=_read,
    left_out=LEFT_OUT,
    finish=without_indices,
)
