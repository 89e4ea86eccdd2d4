"""How far one image is from another: structural similarity, in double precision."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64

_WINDOW_PX = 7
_K1, _K2 = 0.01, 0.03


def structural_similarity(
    one: Float[torch.Tensor, "views height width channels"], other: Float[torch.Tensor, "views height width channels"]
) -> Float64[torch.Tensor, " views"]:
    """Mean structural similarity (SSIM) of each pair of images in 0..1; 1 for equal ones.

    Windows are 7 x 7 pixels, uniformly weighted, with sample covariance, and lie wholly inside the image; channels are
    averaged. These are the defaults of scikit-image.

    Raises:
        ValueError: the images are smaller than a window.

    Source: Wang, Bovik, Sheikh & Simoncelli (2004), IEEE Transactions on Image Processing 13(4).
    """
    if min(one.shape[1:3]) < _WINDOW_PX:
        raise ValueError(
            f"images of {one.shape[1]} x {one.shape[2]} pixels; SSIM needs at least {_WINDOW_PX} each way. "
            "Compare larger images."
        )
    x, y = (images.to(torch.float64).permute(0, 3, 1, 2) for images in (one, other))
    n_pixels = _WINDOW_PX**2
    mean_x, mean_y = _windows(x), _windows(y)
    sample = n_pixels / (n_pixels - 1)
    variance_x, variance_y = (_windows(x * x) - mean_x**2) * sample, (_windows(y * y) - mean_y**2) * sample
    covariance = (_windows(x * y) - mean_x * mean_y) * sample
    c1, c2 = _K1**2, _K2**2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    return similarity.mean(dim=(1, 2, 3))


def _windows(images: torch.Tensor) -> torch.Tensor:
    """The mean over every window that lies inside the image."""
    return torch.nn.functional.avg_pool2d(images, _WINDOW_PX, stride=1)
