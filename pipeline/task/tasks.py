"""Everything that a range test and the training after it must agree on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import lrrt_stage
from lrrt_stage.errors import excerpt, unknown_name
from lrrt_stage.measure.options import StepOptions
from lrrt_stage.settings import Options, masked, option_text, require, setting
from pipeline.data.names import (
    AUGMENTATION_NAMES,
    is_dataset_factory,
    is_factory,
    require_name,
)

__all__ = ["BUILTIN", "CACHE", "BuiltinOptions", "Runtime", "Task"]


@dataclass(frozen=True)
class BuiltinOptions(Options):
    """The options of the built-in setup."""

    dataset: str = setting(
        "digits",
        "digits, diabetes (a regression), photographs, cifar10, cifar100, mnist, fashion_mnist, "
        "imagefolder:PATH, or module:factory.",
    )
    dataset_args: dict[str, Any] = setting({}, "Keyword arguments of the dataset, as JSON.")
    model: str = setting(
        "cnn", "cnn, mlp, resnet20/32/44/56/110, a torchvision classifier, or module:factory."
    )
    model_args: dict[str, Any] = setting({}, "Keyword arguments of the model, as JSON.")
    optimizer: str = setting("sgd", "Any optimizer of torch.optim, or module:factory.")
    optimizer_args: dict[str, Any] = setting(
        {}, "Further keyword arguments of the optimizer, as JSON."
    )
    momentum: float = setting(
        0.9, "Momentum, or Adam's beta1, of an optimizer that has it.", minimum=0, below=1
    )
    weight_decay: float = setting(
        1e-4,
        "Weight decay of an optimizer that has it: decoupled in adamw, an L2 penalty in most.",
        minimum=0,
    )
    loss: str | None = setting(
        None,
        "Loss class of torch.nn, such as HuberLoss, or module:factory; none: CrossEntropyLoss for "
        "classes, MSELoss for numbers.",
    )
    loss_args: dict[str, Any] = setting(
        {}, 'Keyword arguments of the loss, as JSON: {"label_smoothing": 0.1}.'
    )
    l2: float = setting(
        0.0,
        "L2 penalty on the weights of linear and convolutional layers, added to the loss.",
        minimum=0,
    )
    batch_size: int = setting(64, "Examples in a batch.", minimum=1)
    augment: str = setting("none", "Augmentation of training images.", choices=AUGMENTATION_NAMES)
    normalize: bool = setting(
        True, "Bring every channel to mean 0 and deviation 1; false: images are scaled to 0 … 1."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # The names are those of torch, which an option alone does not import.
        from pipeline.models.losses import LOSSES
        from pipeline.models.optimizers import OPTIMIZERS

        require_name("optimizer", self.optimizer.lower(), OPTIMIZERS)
        if self.loss is not None:
            require_name("loss", self.loss, LOSSES)


BUILTIN = frozenset(field.name for field in fields(BuiltinOptions))
"""Names of the options of the built-in setup."""
CACHE = "~/.cache/lrrt-stage"
"""What is kept for any stage, whichever folder it runs in."""


@dataclass(frozen=True)
class Task(BuiltinOptions, StepOptions):
    """The setup, the initial weights, the seeds, and how a step is taken.

    Frozen; what ``dataclasses.asdict`` makes of it goes to JSON and back. With a ``setup`` of the
    user's, the options of the built-in one must be left alone.
    """

    setup: str | None = setting(
        None,
        "module:factory that makes model, optimizer, batches, loss, and metrics; none: the "
        "built-in setup.",
    )
    setup_args: dict[str, Any] = setting({}, "Keyword arguments of the setup, as JSON.")
    init: str | None = setting(
        None,
        "Initial weights: kaiming_uniform, kaiming_normal, xavier_uniform, own (as the model is "
        "made), file:PATH (safetensors) or run:ID (a pretrained start); none: own with a setup, "
        "kaiming_uniform without.",
    )
    seed: int = setting(0, "Seed of the initial weights.", minimum=0, below=2**63)
    data_seed: int = setting(
        0, "Seed of data order, augmentation and dropout.", minimum=0, below=2**63
    )

    def __post_init__(self) -> None:
        if self.init is None:
            object.__setattr__(self, "init", "own" if self.setup else "kaiming_uniform")
        super().__post_init__()
        names = [*lrrt_stage.INITIALIZERS, "own", "file:PATH", "run:ID"]
        if not self.initial.startswith(("file:", "run:")) and self.init not in names:
            raise unknown_name("init", self.initial, names)
        require(
            self.setup is None or is_factory(self.setup),
            f"setup={self.setup!r} is not a factory: give package.module:factory",
        )
        require(
            self.setup is not None or not self.setup_args,
            f"setup_args={self.setup_args} without a setup: name it, or use model_args",
        )
        default = BuiltinOptions()
        changed = [name for name in BUILTIN if getattr(self, name) != getattr(default, name)]
        given = ", ".join(sorted(f"{name}={option_text(getattr(self, name))}" for name in changed))
        require(
            self.setup is None or not changed,
            f"{excerpt(given)} belongs to the built-in setup: give it to setup {self.setup!r} in "
            "setup_args",
        )

    @property
    def initial(self) -> str:
        """The option ``init``, which is not None after construction."""
        assert self.init is not None
        return self.init

    @property
    def data_name(self) -> str:
        """Name of the data: the dataset without a folder, or the setup."""
        if self.setup is not None:
            return self.setup
        own = is_dataset_factory(self.dataset)
        return self.dataset if own else self.dataset.partition(":")[0]

    @property
    def short_name(self) -> str:
        """Name of data and model."""
        return self.data_name if self.setup is not None else f"{self.data_name} {self.model}"

    def changed(self, **changes: Any) -> Task:
        """Return the task with other values; a setup of the user's gets them as its arguments."""
        own = {name: changes.pop(name) for name in BUILTIN & set(changes) if self.setup is not None}
        return replace(self, setup_args=self.setup_args | own, **changes)

    def flat(self) -> dict[str, Any]:
        """Return the options that say what the task is: with a setup, its arguments by name."""
        without = {"setup"} if self.setup is None else BUILTIN
        options = {k: v for k, v in asdict(self).items() if k not in {*without, "setup_args"}}
        return options | {f"setup_args.{name}": value for name, value in self.setup_args.items()}

    def differences(self, other: Task) -> list[str]:
        """Return ``field: mine, not theirs`` for every field that differs, in more than secrets."""
        mine, theirs = (masked(asdict(task), references=True) for task in (self, other))
        return [
            f"{name}: {_short(mine[name], theirs[name])}, not {_short(theirs[name], mine[name])}"
            for name in mine
            if mine[name] != theirs[name]
        ]


def _short(value: Any, other: Any) -> str:
    """Return a value for an error; of arguments, those that differ from the others."""
    if isinstance(value, dict) and isinstance(other, dict):
        missing = object()
        value = {key: item for key, item in value.items() if other.get(key, missing) != item}
    return excerpt(repr(value), 160)


@dataclass(frozen=True)
class Runtime(Options):
    """Where a task runs; it may differ between a range test and its training."""

    device: str = setting("auto", "auto (cuda, then mps, then cpu), or a torch device.")
    data_dir: str = setting(CACHE, "Folder of the datasets that are downloaded.")
    loader_workers: int = setting(
        0, "Processes that read data which does not fit in memory.", minimum=0, maximum=1_000
    )
