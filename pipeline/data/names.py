"""What a name in an option stands for: a built-in choice, or a factory of the user's own.

Importing this imports no torch, so that the command line can say at once what there is.
"""

from __future__ import annotations

from collections.abc import Iterable

from lrrt_stage.errors import unknown_name

__all__ = [
    "AUGMENTATION_NAMES",
    "DATASET_NAMES",
    "is_dataset_factory",
    "is_factory",
    "require_name",
]

DATASET_NAMES = (
    "digits",
    "diabetes",
    "cifar10",
    "cifar100",
    "mnist",
    "fashion_mnist",
    "imagefolder",
    "photographs",
)
"""Names of :data:`pipeline.data.datasets.DATASETS`."""
AUGMENTATION_NAMES = ("none", "crop-flip", "shift-flip")
"""Names of :data:`pipeline.data.augmentation.AUGMENTATIONS`."""


def is_factory(name: str) -> bool:
    """Return whether ``name`` has the form ``package.module:factory``."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), attribute])


def require_name(kind: str, name: str, known: Iterable[str]) -> None:
    """Raise LRRTError unless ``name`` has the form of a factory, or is one of the ``known``."""
    if not is_factory(name) and name not in (names := list(known)):
        raise unknown_name(kind, name, [*names, "package.module:factory"])


def is_dataset_factory(name: str) -> bool:
    """Return whether ``name`` is a factory of the user's own, unlike ``imagefolder:photos``."""
    return is_factory(name) and name.partition(":")[0] not in DATASET_NAMES
