import numpy as np
import pytest
import torch

from evaluators.image_error import structural_similarity


def test_similarity_is_that_of_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    random = np.random.default_rng(0)
    one = random.random((3, 20, 33, 3))
    other = np.stack([one[0], np.clip(one[1] + random.normal(0, 0.1, one[1].shape), 0, 1), random.random(one[2].shape)])
    wanted = [
        metrics.structural_similarity(a, b, channel_axis=2, data_range=1.0) for a, b in zip(one, other, strict=True)
    ]
    found = structural_similarity(torch.from_numpy(one), torch.from_numpy(other))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-10)
    assert found[0] == pytest.approx(1)
    assert found[0] > found[1] > found[2]


def test_images_smaller_than_a_window_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 7 each way"):
        structural_similarity(torch.zeros(1, 6, 9, 3), torch.zeros(1, 6, 9, 3))
