"""Published key formats of ViTs: what a file is, and how its tensors come to the network of timm that runs it."""

from pipelines.backbones.formats.form import KeyFormat, Published, State, VitForm
from pipelines.backbones.formats.recognition import FAMILIES, recognise

__all__ = [
    "FAMILIES",
    "KeyFormat",
    "Published",
    "State",
    "VitForm",
    "recognise",
]
