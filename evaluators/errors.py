"""What an evaluator refuses because it was asked for what cannot be."""

from feature_store import StoreError


class AskedError(StoreError, ValueError):
    """A word of the question does not fit the feature set: another word is to be given, nothing is to be mended."""
