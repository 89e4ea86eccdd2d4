"""A frozen model as the unit of work sees it, whatever its family."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from feature_store import TokenKind
from pipelines.backbones.description import BackboneDescription

Tokens = dict[tuple[int, TokenKind], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Backbone(BackboneDescription, ABC):
    """A frozen model, ready to run.

    Attributes:
        module: the network, in evaluation mode, on its device.
    """

    module: Any

    def forward(
        self,
        pixels: UInt8[np.ndarray, "views height width 3"],
        layers: Sequence[int],
        *,
        class_attention: bool = False,
        ground_sample_distance_m: Float32[np.ndarray, " views"] | None = None,
    ) -> Tokens:
        """The tokens of a batch.

        Args:
            pixels: views after `fit_view`, RGB; in pinned memory a GPU may read them after this returns.
            layers: block numbers counted from 1, ascending.
            class_attention: give the class token's attention to the patches too.
            ground_sample_distance_m: of each view, metres of ground a pixel as its manifest states them; NaN, or None
                for all views, where they are not known. A family that uses them has a stated default; others ignore it.

        Returns:
            (layer, kind) -> float32 [views, patches, features], [views, features] or [views, registers, features], on
            the backbone's device, after the norm that `architecture` names; with `class_attention` also `attention`,
            [views, heads, patches], softmaxed over all tokens.

        Raises:
            BackboneError: the class token's attention cannot be told.
        """
        with torch.inference_mode():
            on_device = torch.from_numpy(pixels).to(self.request.device, non_blocking=True)
            distances = None
            if ground_sample_distance_m is not None:
                distances = torch.from_numpy(ground_sample_distance_m).to(self.request.device)
            return self.tokens_of(
                self.normalise(on_device),
                layers,
                class_attention=class_attention,
                ground_sample_distance_m=distances,
            )

    def normalise(self, pixels: UInt8[torch.Tensor, "views height width 3"]) -> Float32[torch.Tensor, "views 3 h w"]:
        """Scale pixels to 0..1, and subtract and divide by the channels' mean and standard deviation."""
        mean = torch.tensor(self.preprocessing.mean, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.preprocessing.std, device=pixels.device).view(1, 3, 1, 1)
        return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std

    @abstractmethod
    def tokens_of(
        self,
        inputs: Float32[torch.Tensor, "views 3 h w"],
        layers: Sequence[int],
        *,
        class_attention: bool = False,
        ground_sample_distance_m: Float32[torch.Tensor, " views"] | None = None,
    ) -> Tokens:
        """As `forward`, from normalised pixels on the backbone's device."""
