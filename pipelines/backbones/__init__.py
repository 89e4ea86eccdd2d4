"""Frozen ViTs by name and weights: pixels in, tokens of every asked layer out. No Beam."""

from pipelines.backbones.checkpoint import BackboneError
from pipelines.backbones.registry import BackboneRequest, resolve_backbone
from pipelines.backbones.timm_vit import Backbone, load_backbone

__all__ = ["Backbone", "BackboneError", "BackboneRequest", "load_backbone", "resolve_backbone"]
