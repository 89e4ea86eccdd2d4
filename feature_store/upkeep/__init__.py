"""Keeping a store sound: what is wrong with it, and what may go."""

from feature_store.upkeep.findings import Finding, VerifyReport
from feature_store.upkeep.verify import verify_store

__all__ = ["Finding", "VerifyReport", "verify_store"]
