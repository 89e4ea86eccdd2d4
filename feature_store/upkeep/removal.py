"""Removing on purpose. Placeholder docstring."""

REMOVED_FILE = "removed.json"
