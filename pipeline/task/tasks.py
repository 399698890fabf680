"""Everything that a range test and the training after it must agree on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from lrrt_stage.errors import excerpt, unknown_name
from lrrt_stage.measure.step import StepOptions
from lrrt_stage.settings import Options, masked, option_text, require, setting
from lrrt_stage.state.weights import INITIALIZERS
from pipeline.data.datasets import is_dataset_factory
from pipeline.data.factories import is_factory
from pipeline.task.builtin import BuiltinOptions

__all__ = ["BUILTIN", "CACHE", "Runtime", "Task"]

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
        names = [*INITIALIZERS, "own", "file:PATH", "run:ID"]
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
