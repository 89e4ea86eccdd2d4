"""The codecs of feature sets made smaller from stored ones: int8 with a scale a feature, and PCA."""

from feature_store.compression.codec import LEVELS, Codec, Codecs, Projection, Quantiser
from feature_store.compression.decoding import DecodingReader
from feature_store.compression.parameters import (
    PROJECTION,
    QUANTISER,
    parameter_metadata_files,
    parameter_objects,
    parameters_sha256,
    read_codecs,
    write_parameters,
)

__all__ = [
    "LEVELS",
    "PROJECTION",
    "QUANTISER",
    "Codec",
    "Codecs",
    "DecodingReader",
    "Projection",
    "Quantiser",
    "parameter_metadata_files",
    "parameter_objects",
    "parameters_sha256",
    "read_codecs",
    "write_parameters",
]
