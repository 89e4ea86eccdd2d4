"""Datasets: every adapter does one thing, it makes a manifest."""

from pipelines.datasets.dataset import Dataset, DatasetOptions
from pipelines.datasets.demo_scenes import write_demo_scenes
from pipelines.datasets.findings import Finding, classes_without_pixels
from pipelines.datasets.sources import open_dataset

__all__ = ["Dataset", "DatasetOptions", "Finding", "classes_without_pixels", "open_dataset", "write_demo_scenes"]
