"""The options of a training, and of the search for its peak learning rate.

Importing this imports neither torch nor Optuna.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lrrt_stage.guard import ATTEMPTS, MOST_ATTEMPTS
from lrrt_stage.settings import Options, require, setting

__all__ = ["RefineOptions", "ScheduleOptions", "TrainOptions"]

IN_MEMORY = re.compile(r"sqlite(\+\w+)?:/{0,3}(\?.*)?|sqlite.*(:memory:|mode=memory).*")
"""Addresses of databases of which every thread sees its own."""


@dataclass(frozen=True)
class ScheduleOptions(Options):
    """How the learning rate moves inside its range."""

    schedule: str = setting(
        "one-cycle",
        "How the learning rate moves: one-cycle, triangular, warm-restarts, constant, or a class "
        "of torch.optim.lr_scheduler.",
    )
    schedule_args: dict[str, Any] = setting({}, "Keyword arguments of the schedule, as JSON.")

    def __post_init__(self) -> None:
        super().__post_init__()
        # The names are those of torch, which an option alone does not import.
        from pipeline.training.schedules import find_schedule

        find_schedule(self.schedule)


@dataclass(frozen=True)
class TrainOptions(ScheduleOptions):
    """The length of a training, its schedule, and how often it may start again."""

    epochs: int = setting(20, "Passes over the training data.", minimum=1)
    attempts: int = setting(
        ATTEMPTS,
        "Attempts at the training: one that is being ruined starts again with a third of the "
        "learning rates; 1: it goes on.",
        minimum=1,
        maximum=MOST_ATTEMPTS,
    )
    keep: str = setting(
        "best",
        "Weights of the logged model: those of the epoch with the lowest validation loss (best), "
        "or the last ones (last).",
        choices=("best", "last"),
    )


@dataclass(frozen=True)
class RefineOptions(Options):
    """How much is searched, and where the Optuna study is stored."""

    trials: int = setting(
        4, "Trials of the search, over all its workers and interruptions.", minimum=1
    )
    trial_epochs: int | None = setting(
        None,
        "Epochs of each trial's short training; none: a quarter of the epochs of the training, "
        "which main knows; for refine of those that train has by default.",
        minimum=1,
    )
    metric: str | None = setting(
        None, "Validation metric that is improved, such as accuracy; none: the validation loss."
    )
    search_seed: int = setting(0, "Seed of the search.", minimum=0, below=2**31)
    storage: str | None = setting(
        None,
        "Optuna storage URL, from which an interrupted search continues; none: optuna.db beside "
        "MLflow's SQLite file, else in ~/.cache/lrrt-stage.",
    )
    study_name: str | None = setting(
        None, "Name of the Optuna study; none: made from the range-test run and these options."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.storage is None or IN_MEMORY.fullmatch(self.storage) is None,
            f"storage={self.storage!r} is in memory, where a search can neither be continued nor "
            "say that it is alive: give a file, sqlite:///optuna.db",
        )

    def epochs_per_trial(self, epochs: int = TrainOptions.epochs) -> int:
        """Return the epochs of a trial before a training of so many epochs."""
        return self.trial_epochs or max(1, round(epochs / 4))
