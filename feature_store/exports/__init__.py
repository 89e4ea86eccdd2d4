"""A store's tokens in the formats of others: npy, Parquet, WebDataset, FiftyOne, Embedding Atlas."""

from feature_store.exports.atomic import ExportRefusedError
from feature_store.exports.formats import FORMATS, ExportOptions, export_features
from feature_store.exports.subject import ExportSubject

__all__ = ["FORMATS", "ExportOptions", "ExportRefusedError", "ExportSubject", "export_features"]
