"""The built-in datasets. Each is one function in :data:`DATASETS`."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import Dataset

from lrrt_stage.errors import LRRTError, first_line, unknown_name
from lrrt_stage.settings import require
from pipeline.data.factories import call, call_factory
from pipeline.data.names import is_dataset_factory
from pipeline.data.photographs import load_photographs
from pipeline.data.splits import Data, channel_statistics
from pipeline.data.trust import require_trusted

__all__ = ["DATASETS", "load_data"]

VAL_FRACTION = 0.2
SPLIT_SEED = 0
"""For a dataset without a validation split. It is fixed, so that the seeds of a task do not change
which examples are held out."""
IN_MEMORY_BYTES = 2**30
"""A folder whose decoded images take at most this is kept as tensors on the device."""


def load_data(name: str, arguments: Mapping[str, Any], data_dir: str) -> Data:
    """Return the dataset ``name``; see :data:`DATASETS` for the names."""
    require_trusted("dataset", name)
    kind, _, path = name.partition(":")
    if is_dataset_factory(name):
        try:
            made = call_factory("dataset", name, arguments)
        except LRRTError as error:
            # A misspelt imagefolder:photos has the form of a factory.
            if getattr(error.__cause__, "name", "") == kind and get_close_matches(kind, DATASETS):
                raise unknown_name("dataset", kind, DATASETS) from error
            raise
        return Data.from_factory(made, f"dataset {name!r}")
    if kind not in DATASETS:
        raise unknown_name("dataset", kind, [*DATASETS, "package.module:factory"])
    return call("dataset", kind, DATASETS[kind], arguments, path or data_dir)


def digits(_: str) -> Data:
    """scikit-learn's digits: 1,797 images of 8 × 8, 10 classes, shipped inside the package."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images / 16.0).float()[:, None]
    labels = torch.from_numpy(bunch.target).long()
    train, val = ((images[chosen], labels[chosen]) for chosen in _split_indices(bunch.target))
    return Data(train, val, 10, *channel_statistics(train[0]))


def diabetes(_: str) -> Data:
    """scikit-learn's diabetes: 442 patients, 10 measurements, and one number to predict.

    Measurements and target have mean 0 and deviation 1, so that a constant has a loss of 1.
    """
    from sklearn.datasets import load_diabetes

    measured, target = load_diabetes(return_X_y=True, scaled=False)
    kept, held = _split_indices(target, stratify=False)
    table = np.column_stack([measured, target])
    table = (table - table[kept].mean(0)) / table[kept].std(0)
    values = torch.from_numpy(table).float()
    train, val = ((values[chosen, :-1], values[chosen, -1:]) for chosen in (kept, held))
    return Data(train, val, None)


def imagefolder(path: str, size: int = 64) -> Data:
    """Images in ``PATH/<class>/``, or in ``PATH/train/<class>/`` and ``PATH/val/<class>/``.

    Every image is decoded as RGB, its shorter side resized to ``size`` pixels, and cropped to
    the middle square.
    """
    root = Path(path)
    require(size >= 1, f"imagefolder: size={size} must be at least 1: the default is 64")
    # Unlike the method of Path, this takes any name.
    require(os.path.isdir(path), f"imagefolder: there is no folder {path}: give imagefolder:PATH")
    if (root / "train").is_dir() and (root / "val").is_dir():
        train, val = _Folder(root / "train", size), _Folder(root / "val", size)
        require(
            train.classes == val.classes,
            f"{path}: classes in train {train.classes} and val {val.classes} differ: use the same",
        )
    else:
        whole = _Folder(root, size)
        train, val = (whole.part(chosen) for chosen in _split_indices(np.array(whole.targets)))
    # Enough evenly spaced images for a mean and a standard deviation.
    some = np.linspace(0, len(train) - 1, min(len(train), 256)).astype(int)
    statistics = channel_statistics(torch.stack([train[int(i)][0] for i in some]))
    if (len(train) + len(val)) * 3 * size * size <= IN_MEMORY_BYTES:
        return Data(train.decoded(), val.decoded(), len(train.classes), *statistics)
    return Data(train, val, len(train.classes), *statistics)


class _Folder(Dataset):
    """A torchvision ImageFolder whose images are uint8 tensors ``[3, size, size]``."""

    def __init__(self, root: Path, size: int) -> None:
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import v2

        try:
            folder = ImageFolder(str(root))
        except FileNotFoundError as error:
            raise LRRTError(f"imagefolder: {error}: put images into {root}/<class>/") from None
        self.classes, self.samples, self.read = folder.classes, folder.samples, folder.loader
        self.transform = v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor()])

    @property
    def targets(self) -> list[int]:
        return [label for _, label in self.samples]

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
        part = copy.copy(self)
        part.samples = [self.samples[i] for i in indices]
        return part

    def digest(self) -> str:
        """SHA-256 over class, name and size of every file, wherever the folder is."""
        files = [(*Path(path).parts[-2:], Path(path).stat().st_size) for path, _ in self.samples]
        return hashlib.sha256(repr(files).encode()).hexdigest()

    def decoded(self) -> tuple[Tensor, Tensor]:
        return torch.stack([self[i][0] for i in range(len(self))]), torch.tensor(self.targets)


def _torchvision(class_name: str, data_dir: str) -> Data:
    """A torchvision dataset whose ``data`` holds all images as one array."""
    import torchvision.datasets

    splits = []
    for train in (True, False):
        try:
            # torchvision downloads missing files, and those that fail its MD5 check.
            with _one_at_a_time(data_dir):
                dataset = getattr(torchvision.datasets, class_name)
                split = dataset(data_dir, train=train, download=True)
        except Exception as error:  # from a socket, an archive, or a parser of damaged files
            raise LRRTError(
                f"{class_name} in {data_dir} is missing or damaged, and could not be downloaded "
                f"({' '.join(str(error).split()) or type(error).__name__}): put its files there, "
                "or name their folder with data_dir"
            ) from error
        images = torch.as_tensor(split.data)
        images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
        splits.append((images.contiguous(), torch.as_tensor(split.targets)))
    train_split, val_split = splits
    return Data(train_split, val_split, len(split.classes), *channel_statistics(train_split[0]))


@contextmanager
def _one_at_a_time(folder: str) -> Iterator[None]:
    """Let one process of several download; where no file can be made, none of them can."""
    place = Path(os.path.expanduser(folder))
    with ExitStack() as stack:
        with suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(place / ".download.lock"))
        yield


DATASETS: dict[str, Callable[..., Data]] = {
    "digits": digits,
    "diabetes": diabetes,
    "cifar10": partial(_torchvision, "CIFAR10"),
    "cifar100": partial(_torchvision, "CIFAR100"),
    "mnist": partial(_torchvision, "MNIST"),
    "fashion_mnist": partial(_torchvision, "FashionMNIST"),
    "imagefolder": imagefolder,
    "photographs": load_photographs,
}
"""Name -> function of a folder (the path after ``name:``, else ``data_dir``) and arguments."""


def _split_indices(labels: np.ndarray, stratify: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return indices for training and validation, where asked for stratified by label."""
    from sklearn.model_selection import train_test_split

    try:
        kept, held = train_test_split(
            np.arange(len(labels)),
            test_size=VAL_FRACTION,
            stratify=labels if stratify else None,
            random_state=SPLIT_SEED,
        )
    except ValueError as error:
        raise LRRTError(f"{len(labels)} examples cannot be split: {error}") from None
    return np.sort(kept), np.sort(held)
