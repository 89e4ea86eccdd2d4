"""Keeping a store sound: what is wrong with it, what may go, how two differ, and copies that can be trusted."""

from feature_store.upkeep.collect import CollectReport, Garbage, collect_garbage
from feature_store.upkeep.compare import ArrayDifference, Comparison, compare_feature_sets, pair_names
from feature_store.upkeep.copying import CopyReport, copy_store
from feature_store.upkeep.findings import Finding, VerifyReport
from feature_store.upkeep.removal import Removable, find_removable, remove, room_taken, without_writers
from feature_store.upkeep.repair import RepairReport, Unfinished, repair_store
from feature_store.upkeep.superseded import Superseded, find_superseded
from feature_store.upkeep.verify import verify_store

__all__ = [
    "ArrayDifference",
    "CollectReport",
    "Comparison",
    "CopyReport",
    "Finding",
    "Garbage",
    "Removable",
    "RepairReport",
    "Superseded",
    "Unfinished",
    "VerifyReport",
    "collect_garbage",
    "compare_feature_sets",
    "copy_store",
    "find_removable",
    "find_superseded",
    "pair_names",
    "remove",
    "repair_store",
    "room_taken",
    "verify_store",
    "without_writers",
]
