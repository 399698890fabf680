"""What a study runs: range tests and trainings, each a value that a worker process can take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from lrrt_stage import LRCurve, LRRange
from lrrt_stage.rules.reading import Reading
from lrrt_stage.settings import hide_passwords
from lrrt_stage.state.weights import State
from pipeline.data.datasets import load_data
from pipeline.data.splits import Data
from pipeline.data.trust import require_trusted_arguments
from pipeline.task.plan import RangeTestPlan
from pipeline.task.prepared import PreparedTask
from pipeline.task.tasks import Runtime, Task
from pipeline.training.loop import TrainingHistory, train
from pipeline.training.options import TrainOptions

__all__ = [
    "FailedJob",
    "Job",
    "JobResult",
    "RangeTestJob",
    "RangeTestResult",
    "SharedData",
    "TrainingJob",
    "TrainingResult",
]


@dataclass(frozen=True)
class RangeTestResult:
    """What a range test of a study came to."""

    job: RangeTestJob
    reading: Reading
    weights: State = field(default_factory=dict)
    """The initial weights; empty where the test was read back from its run."""

    @property
    def curve(self) -> LRCurve:
        """The curve of the test."""
        return self.reading.curve

    @property
    def range(self) -> LRRange | None:
        """The range that the rule of the plan suggests; None where it suggests none."""
        return self.reading.chosen.range


@dataclass(frozen=True)
class TrainingResult:
    """What a training of a study came to."""

    job: TrainingJob
    history: TrainingHistory


@dataclass(frozen=True)
class FailedJob:
    """A job without a result, and the reason in one line."""

    job: Job
    reason: str

    def __post_init__(self) -> None:
        # Where the job ran: this process does not know what that one read from its environment.
        object.__setattr__(self, "reason", hide_passwords(self.reason))


@dataclass(frozen=True)
class RangeTestJob:
    """A range test of ``task`` from the weights that the task's seed gives."""

    name: str
    task: Task
    plan: RangeTestPlan
    labels: Mapping[str, Any] = field(default_factory=dict)
    """What tells the job from others of its study, beside its task; columns of the tables."""

    def run(self, runtime: Runtime) -> RangeTestResult:
        """Run the test on ``runtime``."""
        prepared = _prepared(self.task, runtime)
        state = prepared.initial_weights()
        reading = self.plan.read(prepared.range_test(state, self.plan))
        return RangeTestResult(self, reading, state)


@dataclass(frozen=True)
class TrainingJob:
    """A training of ``task`` inside ``lr_range`` from the weights that the task's seed gives."""

    name: str
    task: Task
    lr_range: LRRange
    options: TrainOptions
    labels: Mapping[str, Any] = field(default_factory=dict)

    def run(self, runtime: Runtime) -> TrainingResult:
        """Run the training on ``runtime``."""
        prepared = _prepared(self.task, runtime)
        training = train(prepared, prepared.initial_weights(), self.lr_range, self.options)
        # Without the model, which a worker process would have to send.
        history = TrainingHistory(training.lr, training.train_loss, training.epochs)
        return TrainingResult(self, history)


Job = RangeTestJob | TrainingJob
JobResult = RangeTestResult | TrainingResult | FailedJob


_DataName = tuple[str, str, str]
"""Name, arguments and folder of a dataset."""
_loaded: dict[_DataName, Data] = {}
"""The dataset that the jobs of this process share."""


@dataclass(frozen=True)
class SharedData:
    """A dataset in memory, for the jobs of a process. Equal ones have the same content."""

    name: _DataName
    digest: str
    data: Data = field(compare=False, repr=False)

    @classmethod
    def of(cls, prepared: PreparedTask) -> SharedData | None:
        """Return that of a task, on the CPU; None if it has none, or reads it from a disk."""
        data = prepared.data
        if data is None or not all(isinstance(split, tuple) for split in (data.train, data.val)):
            return None
        name = _data_name(prepared.task, prepared.runtime)
        return cls(name, data.digest, data.to(torch.device("cpu")))

    def use(self) -> None:
        """Have the jobs of this process use it, and not load it."""
        _loaded.clear()
        _loaded[self.name] = self.data


def _data_name(task: Task, runtime: Runtime) -> _DataName:
    return task.dataset, json.dumps(task.dataset_args), runtime.data_dir


def _prepared(task: Task, runtime: Runtime) -> PreparedTask:
    # As text they would no longer tell where they come from.
    require_trusted_arguments("dataset", task.dataset_args)
    if task.setup:
        return PreparedTask(task, runtime)
    name = _data_name(task, runtime)
    # Where jobs are threads, another one may load a different dataset meanwhile.
    data = _loaded.get(name)
    if data is None:
        data = load_data(task.dataset, json.loads(name[1]), runtime.data_dir)
        SharedData(name, data.digest, data).use()
    return PreparedTask(task, runtime, data)
