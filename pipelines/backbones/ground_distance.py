"""Scale-MAE's network: positions in metres on the ground, computed for every image."""

from typing import Any

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer

# `eval_base_resolution` of its own evaluation, and the default of torchgeo's class.
DEFAULT_DISTANCE_M = 1.0
_BASE = 10000.0


class ScaleMaeNetwork(VisionTransformer):
    """A ViT whose position embedding is a function of the ground sample distance of each view.

    Attributes:
        ground_sample_distance_m: of the views of the next forward pass; None for the default.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(pos_embed="none", **arguments)
        self.ground_sample_distance_m: torch.Tensor | None = None

    def _pos_embed(self, x: torch.Tensor) -> torch.Tensor:
        distances = self.ground_sample_distance_m
        if distances is None:
            distances = torch.full((len(x),), torch.nan)
        distances = distances.to(x).nan_to_num(nan=DEFAULT_DISTANCE_M)
        waves = ground_waves(distances, self.patch_embed.grid_size, self.embed_dim)
        assert self.cls_token is not None
        return torch.cat([self.cls_token.expand(len(x), -1, -1), x + waves], dim=1)


def ground_waves(
    distances_m: Float[torch.Tensor, " views"], grid: tuple[int, int], width: int
) -> Float[torch.Tensor, "views patches width"]:
    """MAE's waves at places in metres instead of patches.

    Args:
        distances_m: metres of ground a pixel.
        grid: (height, width) of the patch lattice; its authors use square ones alone.
        width: features; the first half is of x, the second of y, and each half sines, then cosines.
    """
    quarter = width // 4
    omega = 1.0 / _BASE ** (torch.arange(quarter, dtype=distances_m.dtype, device=distances_m.device) / quarter)
    y, x = torch.meshgrid(*(torch.arange(n).to(distances_m) for n in grid), indexing="ij")
    parts = []
    for places in (x, y):
        angles = distances_m[:, None, None] * places.flatten()[None, :, None] * omega
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=2)
