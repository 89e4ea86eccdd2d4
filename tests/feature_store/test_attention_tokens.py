"""The token kind `attention` through the store: its arrays, every way to read them, verify, and what refuses it."""

from pathlib import Path

import numpy as np
import pytest
import zarr

from feature_store import CorruptError, FeatureSet, QueryError, open_store
from feature_store.arrays import row_bytes
from feature_store.upkeep import verify_store
from tests.feature_store.samples import all_tokens, fill_store

_INVALID = (3,)


@pytest.fixture
def features(tmp_path: Path) -> FeatureSet:
    return fill_store(
        str(tmp_path / "s"), n_rows=21, layers=(1, 2), kinds=("patches", "cls", "attention"), invalid=_INVALID
    )


def test_attention_is_stored_by_head_and_patch(features: FeatureSet, tmp_path: Path) -> None:
    expected = all_tokens(features.spec, 2, "attention", _INVALID)
    assert expected.shape == (21, 2, 4)
    # Patches of 4 x 3, a class token of 3, and 2 heads by 4 patches, for two layers, and whether the row is valid.
    assert row_bytes(features.spec) == 2 * 2 * (12 + 3 + 8) + 1
    array = zarr.open_array(tmp_path / "s" / features.folder / "tokens.zarr" / "layer_2" / "attention", mode="r")
    assert np.array_equal(np.asarray(array[:]), expected)
    assert array.metadata.to_dict()["dimension_names"] == ("row", "head", "patch")


def test_every_way_of_reading_gives_it(features: FeatureSet) -> None:
    expected = all_tokens(features.spec, 2, "attention", _INVALID)
    rows = [20, 0, 7]
    assert np.array_equal(features.read(kind="attention"), expected)
    assert np.array_equal(features.read(2, "attention", rows), expected[rows])
    blocks = list(features.iter_blocks(2, "attention", block_bytes=64))
    assert np.array_equal(np.concatenate([block for _, block in blocks]), np.delete(expected, 3, axis=0))
    assert np.array_equal(features.to_dask(2, "attention").compute(), expected)
    tables = list(features.to_arrow(layer=2, kind="attention"))
    found = np.asarray([row for table in tables for row in table["attention"].to_pylist()], dtype=np.float16)
    assert np.array_equal(found, np.delete(expected, 3, axis=0))
    with pytest.raises(QueryError, match="patches were chosen among 'attention' tokens"):
        features.read(2, "attention", rows, patches=[0])


def test_xarray_labels_its_heads_and_patches(features: FeatureSet) -> None:
    pytest.importorskip("xarray")
    labelled = features.to_xarray(2, "attention")
    assert labelled.dims == ("row", "head", "patch")
    expected = all_tokens(features.spec, 2, "attention", _INVALID)
    assert np.array_equal(labelled.sel(row=7, patch=2).values, expected[7, :, 2])


def test_verify_finds_a_flipped_bit_in_it(features: FeatureSet) -> None:
    assert verify_store(features.root, deep=True).sound
    path = next(Path(str(features.root.local_path(features.folder))).glob("tokens.zarr/layer_1/attention/c/0/0/0"))
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(bytes(content))
    report = verify_store(features.root, deep=True)
    assert not report.sound
    with pytest.raises(CorruptError, match=r"layer_1/attention.* is not what its receipt says"):
        open_store(features.root.url).features().read(1, "attention")
