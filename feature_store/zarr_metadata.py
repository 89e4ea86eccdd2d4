"""The `zarr.json` of what a store holds, written without zarr-python and equal in meaning to what it writes.

Format: Zarr v3 core specification.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from feature_store.canonical import canonical_json
from feature_store.errors import CorruptError

GROUP_METADATA: Mapping[str, Any] = {"zarr_format": 3, "node_type": "group", "attributes": {}}
# zarr-python writes it out or leaves it away, with one meaning.
_OPTIONAL: Mapping[str, Any] = {"storage_transformers": []}
# A stranger's notes change no number.
_IGNORED = {"attributes"}
_SHOWN_CHARACTERS = 120


def array_metadata(
    *,
    shape: Sequence[int],
    chunk_shape: Sequence[int],
    dtype: str,
    codecs: Sequence[Mapping[str, Any]],
    axes: Sequence[str],
) -> dict[str, Any]:
    """The `zarr.json` of an array with a regular grid of chunks and zero for what is absent.

    Args:
        shape: of the array.
        chunk_shape: of one stored object.
        dtype: a NumPy name that is also Zarr's.
        codecs: from array to bytes, in the order of encoding.
        axes: a name for each axis.
    """
    zeros: dict[str, Any] = {"b": False, "f": 0.0}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk_shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": zeros.get(np.dtype(dtype).kind, 0),
        "codecs": list(codecs),
        "attributes": {},
        "dimension_names": list(axes),
        "storage_transformers": [],
    }


def bytes_codec(dtype: str) -> dict[str, Any]:
    """The codec that writes values in C order, little end first."""
    if np.dtype(dtype).itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


def require_metadata(stored: Mapping[str, Any], expected: Mapping[str, Any], name: str) -> None:
    """Hold a stored `zarr.json` to what it must say.

    Raises:
        CorruptError: any field differs; another layout could not be mapped, and its codecs might run code.
    """
    found = {**_OPTIONAL, **stored}
    for key in sorted({*expected, *found} - _IGNORED):
        # As text, because True == 1 and 3 == 3.0.
        if canonical_json(found.get(key)) != canonical_json(expected.get(key)):
            raise CorruptError(
                f"{name} has {key[:_SHOWN_CHARACTERS]} {_shown(found.get(key))}, and its record asks for "
                f"{_shown(expected.get(key))}. "
                "Restore it from a copy, or run the same `vitrine extract` again."
            )


def _shown(value: Any) -> str:
    text = canonical_json(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
