"""Frozen backbones by name and weights: pixels in, tokens of every asked layer out. No Beam.

What runs a model loads torch, and is loaded when it is first asked for; a plan is written and read without it.
"""

from typing import TYPE_CHECKING

from feature_store.late_names import names_loaded_late
from pipelines.backbones.preprocessing import Windows
from pipelines.backbones.request import BackboneRequest
from pipelines.backbones.weight_files import BackboneError

if TYPE_CHECKING:
    from pipelines.backbones.backbone import Backbone
    from pipelines.backbones.families import describe_backbone, kernel_name, load_backbone, resolve_backbone
else:
    __getattr__ = names_loaded_late(
        __name__,
        {
            "backbone": ("Backbone",),
            "families": ("describe_backbone", "kernel_name", "load_backbone", "resolve_backbone"),
        },
    )

__all__ = [
    "Backbone",
    "BackboneError",
    "BackboneRequest",
    "Windows",
    "describe_backbone",
    "kernel_name",
    "load_backbone",
    "resolve_backbone",
]
