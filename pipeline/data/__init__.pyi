from .splits import Data, Split

__all__ = [
    "Data",
    "Split",
]
