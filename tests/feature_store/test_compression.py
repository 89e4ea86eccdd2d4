"""Compressed feature sets: their arithmetic, what they keep, and what is refused of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from feature_store import (
    CorruptError,
    FeatureSet,
    FeatureSetSpec,
    FeatureStore,
    SelectionError,
    create_store,
    digest_of,
    open_store,
)
from feature_store.compressing import compressed_spec, find_compressed, start_compressed, write_compressed
from feature_store.compression import LEVELS, Codec, Projection, Quantiser
from feature_store.upkeep import verify_store
from tests.feature_store.samples import files_of, fill_store, make_selection

INVALID = (2, 9)
QUANTISER = Quantiser(
    offset=np.array([0.5, -1.0, 0.0], dtype=np.float32), scale=np.array([0.05, 0.04, 0.03], dtype=np.float32)
)
PROJECTION = Projection(
    mean=np.array([0.5, -0.25, 0.0], dtype=np.float32),
    # Two orthonormal columns.
    basis=np.array([[0.6, 0.0], [0.8, 0.0], [0.0, 1.0]], dtype=np.float32),
)


def compressed(source: FeatureSet, codec: Codec, storage_dtype: str) -> FeatureSet:
    """The complete feature set that one codec makes of every array of `source`."""
    codecs = {(1, kind): codec for kind in source.spec.identity.token_kinds}
    spec = compressed_spec(
        source, codecs, storage_dtype=storage_dtype, fitted_on="the sample", fitted_rows_sha256="c" * 64
    )
    target = start_compressed(source, spec, codecs)
    assert len(list(write_compressed(source, target))) == len(source.shards)
    return FeatureSet(source.root, target.name)


# The arithmetic.


@given(hnp.arrays(np.float32, (7, 3), elements=st.floats(-5, 5, width=32)))
def test_a_value_in_reach_comes_back_within_half_a_scale(values: np.ndarray[Any, Any]) -> None:
    reach = QUANTISER.scale * LEVELS
    inside = np.clip(values, QUANTISER.offset - reach, QUANTISER.offset + reach)
    back = QUANTISER.decode(QUANTISER.encode(values))
    # A little more than half, for the rounding of float32 itself.
    assert (np.abs(back - inside) <= QUANTISER.scale * 0.5001).all()


def test_levels_are_rounded_to_the_nearest_and_stop_at_the_ends() -> None:
    values = np.array([[0.5, -1.0, 0.0], [0.57, 1e6, -1e6], [0.53, -1.06, 0.01]], dtype=np.float32)
    expected = [[0, 0, 0], [1, 127, -127], [1, -1, 0]]
    np.testing.assert_array_equal(QUANTISER.encode(values), expected)


def test_a_projection_gives_coordinates_in_its_basis() -> None:
    tokens = np.array([[0.5, -0.25, 0.0], [1.5, -0.25, 2.0]], dtype=np.float16)
    # (1, 0, 2) away from the mean: 0.6 along the first column, 2 along the second.
    np.testing.assert_allclose(PROJECTION.apply(tokens), np.array([[0, 0], [0.6, 2]]), atol=1e-7)


# In a store.


@pytest.mark.parametrize("rows_per_shard", [8, 24])
def test_int8_is_read_as_the_values_that_it_stands_for(store_url: str, rows_per_shard: int) -> None:
    source = fill_store(store_url, rows_per_shard=rows_per_shard, invalid=INVALID)
    features = compressed(source, Codec(quantiser=QUANTISER), "int8")
    valid = np.flatnonzero(source.valid)
    for kind in ("patches", "cls"):
        expected = np.zeros((21, *source.spec.row_shape(kind)), dtype=np.float32)
        expected[valid] = QUANTISER.decode(QUANTISER.encode(source.read(1, kind, valid)))
        found = features.read(1, kind)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
        streamed = list(features.iter_blocks(1, kind, block_bytes=100))
        np.testing.assert_array_equal(np.concatenate([rows for rows, _ in streamed]), valid)
        np.testing.assert_array_equal(np.concatenate([block for _, block in streamed]), expected[valid])
        assert all(block.nbytes <= 100 or len(block) == 1 for _, block in streamed)
    np.testing.assert_array_equal(features.valid, source.valid)
    assert features.invalid_rows == source.invalid_rows


def test_some_patches_of_int8_are_those_of_all(tmp_path: Path) -> None:
    features = compressed(fill_store(str(tmp_path / "store")), Codec(quantiser=QUANTISER), "int8")
    every = features.read(1, "patches", [3, 1])
    np.testing.assert_array_equal(features.read(1, "patches", [3, 1], [2, 0]), every[:, [2, 0]])
    (block,) = [block for _, block in features.iter_blocks(1, "patches", rows=np.array([4]), patches=[1])]
    np.testing.assert_array_equal(block, features.read(1, "patches", [4], [1]))


def test_int8_comes_out_of_every_door_as_floats(tmp_path: Path) -> None:
    features = compressed(fill_store(str(tmp_path / "store"), invalid=INVALID), Codec(quantiser=QUANTISER), "int8")
    expected = features.read(1, "cls")
    np.testing.assert_array_equal(features.to_dask(1, "cls").compute(), expected)
    rows = features.to_arrow(1, "cls").read_all()["cls"]
    assert rows.type.value_type == "float"
    assert rows[0].as_py() == expected[0].tolist()


def test_int8_has_floats_for_xarray(tmp_path: Path) -> None:
    pytest.importorskip("xarray")
    features = compressed(fill_store(str(tmp_path / "store")), Codec(quantiser=QUANTISER), "int8")
    assert features.to_xarray(1, "cls").dtype == np.float32


def test_a_projection_stores_coordinates_in_float16(tmp_path: Path) -> None:
    source = fill_store(str(tmp_path / "store"))
    features = compressed(source, Codec(projection=PROJECTION), "float16")
    assert (features.spec.n_features, features.spec.row_shape("patches")) == (2, (4, 2))
    centred = source.read(1, "patches").astype(np.float64) - PROJECTION.mean
    expected = centred @ PROJECTION.basis.astype(np.float64)
    np.testing.assert_array_equal(features.read(1, "patches"), expected.astype(np.float32).astype(np.float16))


def test_tokens_that_overflow_float16_make_the_row_invalid(tmp_path: Path) -> None:
    source = fill_store(str(tmp_path / "store"))
    mean = PROJECTION.mean.copy()
    large = np.array([[3e4, 0], [0, 1], [0, 0]], dtype=np.float32)
    features = compressed(source, Codec(projection=Projection(mean=mean, basis=large)), "float16")
    first = [(source.read(1, kind).astype(np.float64) - mean)[..., 0].reshape(21, -1) for kind in ("patches", "cls")]
    worst = np.abs(np.concatenate(first, axis=1)).max(axis=1)
    expected = np.flatnonzero(worst * 3e4 > 65519)
    assert 0 < len(expected) < 21
    assert [(entry.row, entry.reason) for entry in features.invalid_rows] == [
        (row, "non_finite") for row in expected.tolist()
    ]
    assert not features.read(1, "patches", expected).any()


def test_plain_zarr_reads_levels_and_parameters(tmp_path: Path) -> None:
    features = compressed(fill_store(str(tmp_path / "store")), Codec(quantiser=QUANTISER), "int8")
    place = tmp_path / "store" / features.folder
    levels = zarr.open_group(str(place / "tokens.zarr"), mode="r")["layer_1/cls"]
    parameters = zarr.open_group(str(place / "compression.zarr"), mode="r")["layer_1/cls"]
    assert isinstance(levels, zarr.Array)
    assert isinstance(parameters, zarr.Group)
    assert levels.dtype == np.int8
    offset, scale = (np.asarray(parameters[name]) for name in ("offset", "scale"))
    values = np.asarray(levels[:]).astype(np.float32) * scale + offset
    np.testing.assert_allclose(values, features.read(1, "cls"), rtol=1e-6)


def test_a_compression_that_was_killed_is_found_and_finished_as_if_undisturbed(tmp_path: Path) -> None:
    source = fill_store(str(tmp_path / "store"), invalid=INVALID)
    codecs = {(1, kind): Codec(quantiser=QUANTISER) for kind in source.spec.identity.token_kinds}
    spec = compressed_spec(source, codecs, storage_dtype="int8", fitted_on="the sample", fitted_rows_sha256="c" * 64)
    next(write_compressed(source, start_compressed(source, spec, codecs)))
    asked = {"storage_dtype": "int8", "n_components": None, "fitted_rows_sha256": "c" * 64}
    found = find_compressed(source, list(codecs), **asked)  # type: ignore[arg-type]
    assert found is not None
    assert len(found.missing) == 2
    list(write_compressed(source, found))
    other = fill_store(str(tmp_path / "other"), invalid=INVALID)
    undisturbed = compressed(other, Codec(quantiser=QUANTISER), "int8")
    left, right = (files_of(root / found.folder) for root in (tmp_path / "store", tmp_path / "other"))
    assert left == right
    assert undisturbed.name == found.name
    for changes in ({"n_components": 2}, {"storage_dtype": "float16"}, {"fitted_rows_sha256": "d" * 64}):
        assert find_compressed(source, list(codecs), **{**asked, **changes}) is None  # type: ignore[arg-type]
    assert find_compressed(source, [(1, "cls")], **asked) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_parameters_that_are_not_those_of_the_identity_are_noticed(tmp_path: Path, damage: str) -> None:
    features = compressed(fill_store(str(tmp_path / "store")), Codec(quantiser=QUANTISER), "int8")
    (place,) = (tmp_path / "store" / features.folder).glob("compression.zarr/layer_1/cls/scale/c/0")
    content = place.read_bytes()
    if damage == "gone":
        place.unlink()
    else:
        place.write_bytes(content[:-4] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorruptError, match="vitrine compress"):
        open_store(str(tmp_path / "store")).features("vit_tiny-int8").read(1, "patches", [0])


def test_a_damaged_source_is_not_compressed(tmp_path: Path) -> None:
    source = fill_store(str(tmp_path / "store"))
    place = tmp_path / "store" / source.folder / "tokens.zarr" / "layer_1" / "cls" / "c" / "1" / "0"
    content = bytearray(place.read_bytes())
    content[0] ^= 1
    place.write_bytes(content)
    with pytest.raises(CorruptError, match="checksum"):
        compressed(FeatureSet(source.root, source.name), Codec(quantiser=QUANTISER), "int8")


# Selections: what a feature's number means.


def test_a_selection_of_the_models_features_fits_int8_and_no_pca(tmp_path: Path) -> None:
    source = fill_store(str(tmp_path / "store"))
    small = compressed(source, Codec(quantiser=QUANTISER), "int8")
    square = Projection(mean=PROJECTION.mean, basis=np.eye(3, dtype=np.float32))
    turned = compressed(source, Codec(projection=square), "float16")
    selection = make_selection()
    selection.check_fits(source.spec, layer=selection.layer, kind=selection.kind)
    selection.check_fits(small.spec, layer=selection.layer, kind=selection.kind)
    with pytest.raises(SelectionError, match=r"of the model's own features, and vit_tiny-pca3 has the features of PCA"):
        selection.check_fits(turned.spec, layer=selection.layer, kind=selection.kind)
    of_pca = make_selection(basis=turned.spec.identity.basis)
    of_pca.check_fits(turned.spec, layer=of_pca.layer, kind=of_pca.kind)
    of_pca.check_fits(
        compressed(source, Codec(projection=square, quantiser=QUANTISER), "int8").spec,
        layer=of_pca.layer,
        kind=of_pca.kind,
    )
    with pytest.raises(SelectionError, match="was made of the features of PCA"):
        of_pca.check_fits(source.spec, layer=of_pca.layer, kind=of_pca.kind)
    assert of_pca.digest != selection.digest


# Records that a stranger changed.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"storage_dtype": "float16"}, "does not fit its compression"),
        ({"compression": {"source_features": 4}}, "does not fit its compression"),
        ({"compression": {"n_components": 3}}, "neither a whole PCA nor a quantiser"),
        ({"compression": {"quantiser_sha256": "abc"}}, "no sha256"),
        ({"compression": {"source_features": 1 << 40}}, "must be within"),
        ({"compression": {"magic": 1}}, "does not know"),
    ],
)
def test_an_impossible_compression_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    spec = compressed(fill_store(str(tmp_path / "store")), Codec(quantiser=QUANTISER), "int8").spec
    assert FeatureSetSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    stored = json.loads(json.dumps(spec.to_json()))
    identity = stored["identity"]
    identity["compression"] |= changes.get("compression", {})
    identity |= {name: value for name, value in changes.items() if name != "compression"}
    stored["digest"] = digest_of(identity)
    with pytest.raises(CorruptError, match=message):
        FeatureSetSpec.from_json(stored)


def test_an_extracted_set_keeps_its_digest_and_is_no_compression_of_itself(tmp_path: Path) -> None:
    source = fill_store(str(tmp_path / "store"))
    assert "compression" not in source.spec.identity.to_json()
    small = compressed(source, Codec(quantiser=QUANTISER), "int8")
    assert small.digest != source.digest
    assert small.spec.identity.computation != source.spec.identity.computation
    assert small.spec.identity.recipe != source.spec.identity.recipe
    names = FeatureStore(create_store(str(tmp_path / "store"))).names()
    assert sorted(names) == sorted([source.name, small.name])


def test_verify_knows_a_compressed_set_and_finds_damage_in_its_parameters(tmp_path: Path) -> None:
    source = fill_store(str(tmp_path / "store"))
    small = compressed(source, Codec(projection=PROJECTION), "float16")
    assert verify_store(source.root).problems == ()
    (place,) = (tmp_path / "store" / small.folder).glob("compression.zarr/layer_1/cls/mean/c/0")
    place.write_bytes(b"\0" * place.stat().st_size)
    (problem,) = verify_store(source.root).problems
    assert problem.path == f"{small.folder}/compression.zarr"
