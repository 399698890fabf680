"""The datasets that are known by name. A loader is one function in :data:`DATASETS`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lrrt_stage.errors import LRRTError, first_line, unknown_name
from lrrt_stage.settings import require
from pipeline.data.factories import call_factory, is_factory
from pipeline.data.photographs import load_photographs
from pipeline.data.splits import Data, Split, channel_statistics

__all__ = ["DATASETS", "is_dataset_factory", "load_data"]

VAL_FRACTION = 0.2
SPLIT_SEED = 0
"""Where a dataset has no validation split of its own. Fixed, so that neither weights nor data
order change which examples are held back."""
IN_MEMORY_BYTES = 2**30
"""A folder of images below this, decoded, is kept as one tensor on the device."""


def load_data(name: str, arguments: Mapping[str, Any], data_dir: str) -> Data:
    """Return the dataset ``name``; see :data:`DATASETS` for the names.

    Raises
    ------
    LRRTError
        If there is no such dataset, it cannot be read or downloaded, or its content is unusable.
    """
    kind, _, path = name.partition(":")
    if is_dataset_factory(name):
        try:
            made = call_factory("dataset", name, arguments)
        except LRRTError as error:
            cause = error.__cause__
            missing = isinstance(cause, ModuleNotFoundError) and cause.name == kind
            if missing and get_close_matches(kind, DATASETS):
                raise unknown_name("dataset", kind, DATASETS) from error
            raise
        return Data.of(made, f"dataset {name!r}")
    if kind not in DATASETS:
        raise unknown_name("dataset", kind, [*DATASETS, "package.module:factory"])
    try:
        return DATASETS[kind](path or data_dir, **arguments)
    except TypeError as error:
        raise LRRTError(f"dataset {name!r}: {error}: check dataset_args {arguments}") from error


def is_dataset_factory(name: str) -> bool:
    """Tell whether ``name`` is a factory of the user's own, not ``imagefolder:photos``."""
    return is_factory(name) and name.partition(":")[0] not in DATASETS


def digits(_: str) -> Data:
    """scikit-learn's digits: 1,797 images of 8 × 8, 10 classes, shipped inside the package."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images / 16.0).float()[:, None]
    train, val = _held_back((images, torch.from_numpy(bunch.target).long()))
    return Data(train, val, 10, *channel_statistics(train[0]))


def imagefolder(path: str, size: int = 64) -> Data:
    """Images in ``PATH/<class>/``, or in ``PATH/train/<class>/`` and ``PATH/val/<class>/``.

    Every image is decoded as RGB, its shorter side resized to ``size`` pixels, and cropped to
    the middle square.
    """
    root = Path(path)
    require(size >= 1, f"imagefolder: size={size} is below 1: raise it")
    require(root.is_dir(), f"imagefolder: there is no folder {path}: give imagefolder:PATH")
    if (root / "train").is_dir() and (root / "val").is_dir():
        train, val = _Folder(root / "train", size), _Folder(root / "val", size)
        require(
            train.classes == val.classes,
            f"{path}: classes in train {train.classes} and val {val.classes} differ: align them",
        )
    else:
        whole = _Folder(root, size)
        kept, held = _split_indices(np.array(whole.targets))
        train, val = whole.part(kept), whole.part(held)
    # Enough images, evenly spaced, for a mean and a deviation.
    some = np.linspace(0, len(train) - 1, min(len(train), 256)).astype(int)
    statistics = channel_statistics(torch.stack([train[int(i)][0] for i in some]))
    if (len(train) + len(val)) * 3 * size * size <= IN_MEMORY_BYTES:
        return Data(train.decoded(), val.decoded(), len(train.classes), *statistics)
    return Data(train, val, len(train.classes), *statistics)


class _Folder(Dataset):
    """A torchvision ImageFolder whose images come as uint8 tensors ``[3, size, size]``."""

    def __init__(self, root: Path, size: int) -> None:
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import v2

        try:
            folder = ImageFolder(str(root))
        except FileNotFoundError as error:
            raise LRRTError(f"imagefolder: {error}: put images into {root}/<class>/") from None
        self.classes, self.samples, self.targets = folder.classes, folder.samples, folder.targets
        self.read = folder.loader
        self.transform = v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        try:
            return self.transform(self.read(path)), label
        except OSError as error:
            raise LRRTError(
                f"imagefolder: {path} cannot be read as an image ({first_line(error)}): "
                "replace or remove it"
            ) from error

    def part(self, indices: np.ndarray) -> _Folder:
        part = object.__new__(_Folder)
        part.__dict__.update(self.__dict__)
        part.samples = [self.samples[i] for i in indices]
        part.targets = [self.targets[i] for i in indices]
        return part

    def digest(self) -> str:
        """SHA-256 over class, name and size of every file, wherever the folder is."""
        files = [(*Path(path).parts[-2:], Path(path).stat().st_size) for path, _ in self.samples]
        return hashlib.sha256(repr(files).encode()).hexdigest()

    def decoded(self) -> tuple[Tensor, Tensor]:
        return torch.stack([self[i][0] for i in range(len(self))]), torch.tensor(self.targets)


def _torchvision(class_name: str) -> Callable[[str], Data]:
    """Return a loader for a torchvision dataset whose ``data`` holds all images as one array."""

    def load(data_dir: str) -> Data:
        import torchvision.datasets

        dataset_class = getattr(torchvision.datasets, class_name)
        splits = [_downloaded(dataset_class, data_dir, train) for train in (True, False)]
        train, val = (_image_tensors(split) for split in splits)
        return Data(train, val, len(splits[0].classes), *channel_statistics(train[0]))

    return load


def _downloaded(dataset_class: Any, data_dir: str, train: bool) -> Any:
    try:
        # torchvision downloads what is missing (and what fails its MD5, where it checks that).
        return dataset_class(data_dir, train=train, download=True)
    except Exception as error:  # what a socket, an archive or a parser of damaged files raises
        raise LRRTError(
            f"{dataset_class.__name__} in {data_dir} is missing or damaged, and could not be "
            f"downloaded ({' '.join(str(error).split()) or type(error).__name__}): put its files "
            "there, or name their folder with data_dir"
        ) from error


def _image_tensors(split: Any) -> tuple[Tensor, Tensor]:
    images = torch.as_tensor(split.data)
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
    return images.contiguous(), torch.as_tensor(split.targets)


DATASETS: dict[str, Callable[..., Data]] = {
    "digits": digits,
    "cifar10": _torchvision("CIFAR10"),
    "cifar100": _torchvision("CIFAR100"),
    "mnist": _torchvision("MNIST"),
    "fashion_mnist": _torchvision("FashionMNIST"),
    "imagefolder": imagefolder,
    "photographs": load_photographs,
}
"""Name -> function of a folder (what stands behind ``name:``, else ``data_dir``) and arguments."""


def _held_back(split: tuple[Tensor, Tensor]) -> tuple[Split, Split]:
    kept, held = _split_indices(split[1].numpy())
    train = (split[0][kept], split[1][kept])
    return train, (split[0][held], split[1][held])


def _split_indices(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return indices for training and validation, stratified by label."""
    from sklearn.model_selection import train_test_split

    try:
        kept, held = train_test_split(
            np.arange(len(labels)), test_size=VAL_FRACTION, stratify=labels, random_state=SPLIT_SEED
        )
    except ValueError as error:
        raise LRRTError(f"{len(labels)} examples cannot be split: {error}") from None
    return np.sort(kept), np.sort(held)
