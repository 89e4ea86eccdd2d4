"""Asking for rows: conditions over the manifest, and tokens for NumPy, Arrow, dask, xarray and torch."""

from feature_store.query.patches import PatchChoice
from feature_store.query.rows import FeatureRows, RowQueries

__all__ = ["FeatureRows", "PatchChoice", "RowQueries"]
