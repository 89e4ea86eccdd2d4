"""Published key formats of ViTs: what a file is, and how its tensors come to the network of timm that runs it.

All of it needs torch's tensors, and is loaded when it is first asked for: the catalogue, which reads how families
evaluate, is shown without.
"""

from typing import TYPE_CHECKING

from feature_store.late_names import names_loaded_late

if TYPE_CHECKING:
    from pipelines.backbones.formats.form import KeyFormat, Published, State, VitForm
    from pipelines.backbones.formats.recognition import FAMILIES, recognise
else:
    __getattr__ = names_loaded_late(
        __name__,
        {"form": ("KeyFormat", "Published", "State", "VitForm"), "recognition": ("FAMILIES", "recognise")},
    )

__all__ = [
    "FAMILIES",
    "KeyFormat",
    "Published",
    "State",
    "VitForm",
    "recognise",
]
