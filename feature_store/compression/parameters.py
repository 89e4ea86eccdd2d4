"""The parameters of codecs inside a feature set: plain Zarr arrays, held to the digests in its identity."""

import hashlib
from math import prod
from typing import Any

import numpy as np

from feature_store import layout
from feature_store.arrays import token_names
from feature_store.canonical import pretty_json
from feature_store.compression.codec import Codec, Codecs, Projection, Quantiser
from feature_store.errors import CorruptError, StoreNotFoundError
from feature_store.identity import FeatureSetSpec, TokenKind
from feature_store.objects import ObjectRoot
from feature_store.zarr_metadata import GROUP_METADATA, array_metadata, bytes_codec

PROJECTION = ("mean", "basis")
QUANTISER = ("offset", "scale")
_AXES = {
    "mean": ("model_feature",),
    "basis": ("model_feature", "feature"),
    "offset": ("feature",),
    "scale": ("feature",),
}
_DTYPE = "float32"
_REMEDY = "Move the feature set away and run the same `vitrine compress` again."


def parameters_sha256(codecs: Codecs, names: tuple[str, str]) -> str | None:
    """Sha256 of some parameters of every codec; None where they have none."""
    digest = hashlib.sha256()
    empty = True
    for layer, kind in sorted(codecs):
        parameters = codecs[layer, kind].parameters()
        for name in names:
            if name in parameters:
                empty = False
                digest.update(f"{layer} {kind} {name} {parameters[name].shape}\n".encode())
                digest.update(parameters[name].astype("<f4").tobytes())
    return None if empty else digest.hexdigest()


def parameter_shapes(spec: FeatureSetSpec) -> dict[str, tuple[int, ...]]:
    """The parameters that each layer and kind of a feature set has, by name; none where it was extracted."""
    compression = spec.identity.compression
    shapes: dict[str, tuple[int, ...]] = {}
    if compression is None:
        return shapes
    if compression.projection_sha256 is not None:
        shapes["mean"] = (compression.source_features,)
        shapes["basis"] = (compression.source_features, spec.n_features)
    if compression.quantiser_sha256 is not None:
        shapes["offset"] = shapes["scale"] = (spec.n_features,)
    return shapes


def parameter_metadata_files(folder: str, spec: FeatureSetSpec) -> dict[str, bytes]:
    """Every `zarr.json` of the parameters, by path."""
    shapes = parameter_shapes(spec)
    if not shapes:
        return {}
    group = layout.compression_group(folder)
    names = token_names(spec)
    groups = {group, *(f"{group}/layer_{layer}" for layer, _ in names)}
    groups |= {f"{group}/layer_{layer}/{kind}" for layer, kind in names}
    contents = {f"{path}/zarr.json": pretty_json(dict(GROUP_METADATA)) for path in sorted(groups)}
    for layer, kind in names:
        for name, shape in shapes.items():
            metadata = array_metadata(
                shape=shape, chunk_shape=shape, dtype=_DTYPE, codecs=[bytes_codec(_DTYPE)], axes=_AXES[name]
            )
            array = layout.compression_array(folder, layer, kind, name)
            contents[f"{array}/zarr.json"] = pretty_json(metadata)
    return contents


def parameter_objects(folder: str, spec: FeatureSetSpec) -> list[str]:
    """The paths of the parameters' own objects."""
    shapes = parameter_shapes(spec)
    return [_object(folder, *name, *parameter) for name in token_names(spec) for parameter in shapes.items()]


def _object(folder: str, layer: int, kind: TokenKind, parameter: str, shape: tuple[int, ...]) -> str:
    return "/".join([layout.compression_array(folder, layer, kind, parameter), "c", *["0"] * len(shape)])


def write_parameters(root: ObjectRoot, folder: str, codecs: Codecs) -> None:
    """Write the parameters of a feature set that is about to be made; safe to repeat."""
    for (layer, kind), codec in codecs.items():
        for name, values in codec.parameters().items():
            content = np.ascontiguousarray(values, dtype="<f4").tobytes()
            root.put(_object(folder, layer, kind, name, values.shape), [content])


def read_codecs(root: ObjectRoot, folder: str, spec: FeatureSetSpec) -> dict[tuple[int, TokenKind], Codec]:
    """The codecs of a compressed feature set; none of one that was extracted.

    Raises:
        CorruptError: a parameter is missing, or not what the identity states.
    """
    compression = spec.identity.compression
    if compression is None:
        return {}
    codecs = {name: _read_codec(root, folder, spec, *name) for name in token_names(spec)}
    stated = (compression.projection_sha256, compression.quantiser_sha256)
    if stated != (parameters_sha256(codecs, PROJECTION), parameters_sha256(codecs, QUANTISER)):
        raise CorruptError(f"{layout.compression_group(folder)} is not what feature_set.json states. {_REMEDY}")
    return codecs


def _read_codec(root: ObjectRoot, folder: str, spec: FeatureSetSpec, layer: int, kind: TokenKind) -> Codec:
    found = {
        name: _read(root, _object(folder, layer, kind, name, shape), shape)
        for name, shape in parameter_shapes(spec).items()
    }
    return Codec(
        projection=Projection(mean=found["mean"], basis=found["basis"]) if "basis" in found else None,
        quantiser=Quantiser(offset=found["offset"], scale=found["scale"]) if "scale" in found else None,
    )


def _read(root: ObjectRoot, path: str, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    try:
        content = root.read(path, max_bytes=4 * prod(shape) + 1)
        return np.frombuffer(content, dtype="<f4").astype(np.float32).reshape(shape)
    except (StoreNotFoundError, ValueError) as error:
        raise CorruptError(f"{path} is missing or of the wrong size, and tokens need it. {_REMEDY}") from error
