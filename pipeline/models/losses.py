"""Losses by name: the classes of ``torch.nn``."""

from __future__ import annotations

from torch import nn

__all__ = ["LOSSES"]

LOSSES = {name: kind for name, kind in vars(nn).items() if name.endswith("Loss")}
"""Name -> the losses of ``torch.nn``."""
