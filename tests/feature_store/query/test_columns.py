"""columns: texts as numbers, in memory that does not grow with their lengths."""

import numpy as np
import pyarrow as pa
import pytest

from feature_store.query.columns import numbered_texts


@pytest.mark.parametrize("rows_per_batch", [1, 2, 7, 1000])
def test_equal_texts_have_one_number_in_the_order_of_texts(
    monkeypatch: pytest.MonkeyPatch, rows_per_batch: int
) -> None:
    monkeypatch.setattr("feature_store.query.columns._ROWS_PER_BATCH", rows_per_batch)
    texts = np.random.default_rng(0).choice(["", "a", "aa", "b", "\U0001f600", "\uffff", "é"], size=50).tolist()
    column = pa.chunked_array([pa.array(texts[:20]), pa.array(texts[20:])])
    assert numbered_texts(column).tolist() == [sorted(set(texts)).index(text) for text in texts]
    assert numbered_texts(pa.chunked_array([["only"]])).tolist() == [0]
