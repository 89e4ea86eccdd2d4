"""A store's tokens in the formats of others: npy, Parquet, WebDataset, FiftyOne, Embedding Atlas."""

from feature_store.exports.atomic import ExportFailedError, appearing_file
from feature_store.exports.formats import FORMATS, ExportOptions, export_features
from feature_store.exports.places import ExportRefusedError, check_place
from feature_store.exports.subject import ExportSubject

__all__ = [
    "FORMATS",
    "ExportFailedError",
    "ExportOptions",
    "ExportRefusedError",
    "ExportSubject",
    "appearing_file",
    "check_place",
    "export_features",
]
