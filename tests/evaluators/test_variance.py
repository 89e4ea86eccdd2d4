from collections.abc import Callable

import numpy as np
import pytest

from evaluators import VarianceParameters, evaluate_variance
from feature_store import IncompleteError, StoreError

from .conftest import Synthetic


@pytest.mark.parametrize(("split", "chosen"), [("auto", "train"), ("test", "test"), (None, None)])
def test_variance_equals_numpy_over_the_valid_tokens_of_the_split(
    segmented: Synthetic, split: str | None, chosen: str | None
) -> None:
    rows = [r for r in range(14) if segmented.valid[r] and chosen in {None, segmented.splits[r]}]
    tokens = segmented.patches[rows].reshape(-1, 6).astype(np.float64)
    result = evaluate_variance(segmented.features, VarianceParameters(split=split))
    np.testing.assert_allclose(result.variance, tokens.var(axis=0), rtol=1e-12)
    np.testing.assert_allclose(result.mean, tokens.mean(axis=0), rtol=1e-10)
    assert result.order == tuple(np.argsort(-tokens.var(axis=0)).tolist())
    assert (result.n_tokens, result.split) == (len(tokens), chosen)


def test_variance_of_cls_tokens(segmented: Synthetic) -> None:
    rows = [r for r in range(14) if segmented.valid[r] and segmented.splits[r] == "train"]
    result = evaluate_variance(segmented.features, VarianceParameters(kind="cls"))
    np.testing.assert_allclose(result.variance, segmented.cls[rows].astype(np.float64).var(axis=0), rtol=1e-12)


def test_variance_refuses_a_kind_a_layer_or_a_split_that_is_not_there(segmented: Synthetic) -> None:
    for parameters, message in (
        (VarianceParameters(kind="registers"), "no 'registers' tokens"),
        (VarianceParameters(layer=11), "layer 11 is not in"),
        (VarianceParameters(split="val"), "split 'val' is not in"),
    ):
        with pytest.raises(StoreError, match=message):
            evaluate_variance(segmented.features, parameters)


def test_variance_refuses_an_incomplete_feature_set(synthetic: Callable[..., Synthetic]) -> None:
    data = synthetic(n_rows=20, commit=slice(1, 3))
    data.features.partial = False
    with pytest.raises(IncompleteError, match="2 of 3 shards"):
        evaluate_variance(data.features, VarianceParameters())
