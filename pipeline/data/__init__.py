"""Datasets: two splits in memory or on disk, cut into batches."""

from pipeline.data.splits import Data, Split

__all__ = ["Data", "Split"]
