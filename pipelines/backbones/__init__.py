"""Frozen backbones by name and weights: pixels in, tokens of every asked layer out. No Beam."""

from pipelines.backbones.backbone import Backbone
from pipelines.backbones.checkpoint import BackboneError
from pipelines.backbones.families import describe_backbone, kernel_name, load_backbone, resolve_backbone
from pipelines.backbones.preprocessing import Windows
from pipelines.backbones.request import BackboneRequest

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
