"""How a position embedding comes to another grid: one rule a family, as its authors' code has it.

The rules differ by more than rounding. timm's antialias alone moves the variances of DINOv2's features by 4 %; so the
rule's name and its parameters are part of a feature set's identity.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float

from pipelines.backbones import relative_bias


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A way to resample a grid of position embeddings.

    Attributes:
        name: as the identity records it.
        mode, antialias, align_corners: see `torch.nn.functional.interpolate`.
        offset: where set, the grid is scaled by (wanted + offset) / stored instead of to the wanted size, which samples
            at slightly other places.
    """

    name: str
    mode: Literal["bicubic", "bilinear"] = "bicubic"
    antialias: bool = False
    align_corners: bool = False
    offset: float | None = None

    def described(self, stored: tuple[int, int], wanted: tuple[int, int]) -> str:
        """The rule at work, as the identity records it."""
        how = f"{self.mode} {'with' if self.antialias else 'without'} antialias"
        how += " and aligned corners" if self.align_corners else ""
        how += f" scaled by (n + {self.offset}) / N" if self.offset is not None else ""
        # Families that resample alike have one text, so that it is no matter by which of them a file was named.
        name = next(rule.name for rule in RULES.values() if replace(rule, name=self.name) == self)
        return f"{how} from {stored[0]}x{stored[1]} to {wanted[0]}x{wanted[1]} ({name})"


# facebookresearch/dino @7c446df and dinov2 @b8931f7, interpolate_pos_encoding; mae @efb2a80, util/pos_embed.py;
# torchvision 0.29, interpolate_embeddings; open_clip, resize_pos_embed; transformers, interpolate_pos_encoding.
RULES = {
    rule.name: rule
    for rule in (
        Rule(name="timm", antialias=True),
        Rule(name="mae"),
        Rule(name="dino", offset=0.1),
        Rule(name="dinov2", offset=0.1),
        Rule(name="dinov2-registers", antialias=True),
        Rule(name="torchvision", align_corners=True),
        Rule(name="transformers"),
    )
}


def position_text(rule: str, stored: tuple[int, int], wanted: tuple[int, int]) -> str:
    """How positions come to a grid, as the identity records it.

    Args:
        rule: a name in `RULES`, or of a family's positions that are no embedding.
        stored, wanted: (height, width) of the grids.
    """
    if rule in RULES:
        return "as stored" if stored == wanted else RULES[rule].described(stored, wanted)
    if rule in relative_bias.RULES:
        return relative_bias.text(rule, stored, wanted)
    return f"computed ({rule})"


def resample(
    embedding: Float[torch.Tensor, "1 positions width"],
    *,
    stored: tuple[int, int],
    wanted: tuple[int, int],
    rule: Rule,
) -> Float[torch.Tensor, "1 wanted_positions width"]:
    """Bring a position embedding to another grid.

    Args:
        embedding: one vector a position, those of prefix tokens first, which are kept as they are.
        stored, wanted: (height, width) of the grids.
        rule: how.
    """
    if stored == wanted:
        return embedding
    n_prefix = embedding.shape[1] - stored[0] * stored[1]
    prefix, patches = embedding[:, :n_prefix], embedding[:, n_prefix:]
    # In float32 whatever the file has, as timm and the authors do it.
    exact = torch.promote_types(patches.dtype, torch.float32)
    lattice = patches.to(exact).reshape(1, *stored, -1).permute(0, 3, 1, 2)
    if rule.offset is None:
        resampled = torch.nn.functional.interpolate(
            lattice,
            size=wanted,
            mode=rule.mode,
            align_corners=rule.align_corners,
            antialias=rule.antialias,
        )
    else:
        scale = tuple((new + rule.offset) / old for new, old in zip(wanted, stored, strict=True))
        resampled = torch.nn.functional.interpolate(lattice, scale_factor=scale, mode=rule.mode, align_corners=False)
    flat = resampled.permute(0, 2, 3, 1).reshape(1, wanted[0] * wanted[1], -1)
    return torch.cat([prefix, flat.to(prefix.dtype)], dim=1)
