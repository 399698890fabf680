"""Everything that a range test and the training after it must agree on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from lrrt_stage.errors import LRRTError, unknown_name
from lrrt_stage.measure.step import StepOptions
from lrrt_stage.settings import Options, require, setting
from lrrt_stage.state.weights import INITIALIZERS
from pipeline.data.augmentation import AUGMENTATIONS
from pipeline.models.optimizers import OPTIMIZERS

__all__ = ["CACHE", "Runtime", "Task"]

CACHE = "~/.cache/lrrt-stage"
"""What is kept for any stage, whichever folder it runs in."""


@dataclass(frozen=True)
class Task(StepOptions):
    """Data, model, optimizer, batches and seeds. Frozen; goes to JSON and back unchanged."""

    dataset: str = setting(
        "digits",
        "digits, photographs, cifar10, cifar100, mnist, fashion_mnist, imagefolder:PATH, or "
        "module:factory.",
    )
    dataset_args: dict[str, Any] = setting({}, "Keyword arguments of the dataset, as JSON.")
    model: str = setting(
        "cnn", "cnn, mlp, resnet20/32/44/56/110, a torchvision classifier, or module:factory."
    )
    model_args: dict[str, Any] = setting({}, "Keyword arguments of the model, as JSON.")
    init: str = setting(
        "kaiming_uniform",
        "Initial weights: kaiming_uniform, kaiming_normal, xavier_uniform, own (the model's "
        "constructor), file:PATH (safetensors) or run:ID (a pretrained start).",
    )
    seed: int = setting(0, "Seed of the initial weights.", minimum=0, below=2**63)
    data_seed: int = setting(
        0, "Seed of data order, augmentation and dropout.", minimum=0, below=2**63
    )
    optimizer: str = setting("sgd", "Optimizer.", choices=OPTIMIZERS)
    momentum: float = setting(0.9, "SGD's momentum, Adam's beta1.", minimum=0, below=1)
    weight_decay: float = setting(
        1e-4, "L2 penalty of sgd and adam, decoupled decay of adamw.", minimum=0
    )
    l2: float = setting(
        0.0,
        "L2 penalty on the weights of linear and convolutional layers, added to the loss.",
        minimum=0,
    )
    batch_size: int = setting(64, "Examples in a batch.", minimum=1)
    augment: str = setting("none", "Augmentation of training images.", choices=AUGMENTATIONS)
    normalize: bool = setting(
        True, "Bring every channel to mean 0 and deviation 1; false: images are scaled to 0 … 1."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [*INITIALIZERS, "own", "file:PATH", "run:ID"]
        if not self.init.startswith(("file:", "run:")) and self.init not in names:
            raise unknown_name("init", self.init, names)

    def to_json(self) -> str:
        """Return the task as JSON, keys sorted."""
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Task:
        """Return the task that :meth:`to_json` wrote.

        Raises
        ------
        LRRTError
            If the text is not JSON, or names a field that this version does not know.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise LRRTError(f"the task is not JSON ({error}): it was altered") from None
        require(isinstance(values, dict), f"the task is {text.strip()[:20]!r}, not a JSON object")
        unknown = set(values) - {field.name for field in fields(cls)}
        require(not unknown, f"the task has unknown fields {sorted(unknown)}: update lrrt-stage")
        return cls(**values)

    def differences(self, other: Task) -> list[str]:
        """Return ``field: mine, not theirs`` for every field that differs."""
        return [
            f"{field.name}: {getattr(self, field.name)!r}, not {getattr(other, field.name)!r}"
            for field in fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]


@dataclass(frozen=True)
class Runtime(Options):
    """Where a task runs; it may differ between a range test and its training."""

    device: str = setting("auto", "auto (cuda, then mps, then cpu), or a torch device.")
    data_dir: str = setting(CACHE, "Folder of the datasets that are downloaded.")
    loader_workers: int = setting(
        0, "Processes that read data which does not fit in memory.", minimum=0
    )
