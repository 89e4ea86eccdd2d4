"""Datasets: every adapter does one thing, it makes a manifest."""

from pipelines.datasets.dataset import Dataset, DatasetOptions
from pipelines.datasets.demo_scenes import write_demo_scenes
from pipelines.datasets.sources import open_dataset

__all__ = ["Dataset", "DatasetOptions", "open_dataset", "write_demo_scenes"]
