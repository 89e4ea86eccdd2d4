"""Offline extraction: datasets to manifests, images through a frozen backbone, tokens into the store."""

__all__: list[str] = []
