"""Vectors that others made, brought into a store: one module a layout, one path to a feature set."""

from pipelines.imports.dataset import ImportedDataset, imported_dataset
from pipelines.imports.run import ImportOutcome, ImportStatement, import_vectors
from pipelines.imports.source_arrays import ImportRefusedError
from pipelines.imports.sources import open_vectors
from pipelines.imports.vectors import ImportOptions, Vectors

__all__ = [
    "ImportOptions",
    "ImportOutcome",
    "ImportRefusedError",
    "ImportStatement",
    "ImportedDataset",
    "Vectors",
    "import_vectors",
    "imported_dataset",
    "open_vectors",
]
