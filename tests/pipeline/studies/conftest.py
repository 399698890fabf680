from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from matplotlib.figure import Figure

from lrrt_stage import (
    Confidence,
    LRCurve,
    LRRange,
    RangeTestOptions,
    Reading,
    Smoothing,
    Suggestion,
    SuggestionOptions,
    Verdict,
    suggest_all,
)
from pipeline import RangeTestPlan, Runtime, Task, TrainOptions
from pipeline.jobs.jobs import (
    FailedJob,
    Job,
    JobResult,
    RangeTestJob,
    RangeTestResult,
    TrainingJob,
    TrainingResult,
)
from pipeline.jobs.pool import run_jobs
from pipeline.studies.options import StudyOptions
from pipeline.studies.study import Findings, Study
from pipeline.training.loop import Epoch, TrainingHistory

X = np.arange(-60, 11) / 10
"""log10(lr) of the curves made here: ten learning rates a decade, 1e-6 to 10."""

RAW = RangeTestPlan(smoothing=Smoothing("corrected", 0.0), suggestion=SuggestionOptions("article"))


class FakeRun:
    """A ``run`` whose results are made by hand: a text is the reason of a job that failed."""

    def __init__(self, answer: Callable[[Job], RangeTestResult | TrainingResult | str]) -> None:
        self.answer = answer
        self.jobs: list[Job] = []

    def __call__(self, jobs: Sequence[Job]) -> list[JobResult]:
        self.jobs += jobs
        results = [self.answer(job) for job in jobs]
        return [
            FailedJob(job, result) if isinstance(result, str) else result
            for job, result in zip(jobs, results, strict=True)
        ]


@pytest.fixture
def valley():
    """A function to a V over log10(lr) whose minimum is at ``turn``.

    The loss falls and rises by 1 a decade, and by 3 in the two steps around ``steep``. Unsmoothed,
    the article's rule suggests ``steep`` (if at most a hundredth of ``turn``), or else a hundredth
    of ``turn``, to a tenth of ``turn``.
    """

    def make(turn: float, steep: float | None = None, **series) -> LRCurve:
        loss = 1 + np.abs(X - np.log10(turn))
        if steep is not None:
            loss += 2 * np.clip(np.log10(steep) + 0.1 - X, 0, 0.2)
        return LRCurve(10**X, loss, **series)

    return make


@pytest.fixture
def flat():
    """A curve without a suggestion: its loss never falls."""
    return LRCurve(10**X, 2 + 0.1 * np.arange(len(X)))


@pytest.fixture
def measured():
    """A function from a job and its curve to the result of the test."""

    def make(job: RangeTestJob, curve: LRCurve) -> RangeTestResult:
        # An interval that takes no bootstrap: a tenth to either side.
        suggestions = {
            name: Suggestion(found, Confidence(found.max / 1.1, found.max * 1.1, Verdict.CLEAR))
            if isinstance(found, LRRange)
            else Suggestion.missing(found)
            for name, found in suggest_all(curve, job.plan.smoothing).items()
        }
        rule = job.plan.suggestion.rule
        return RangeTestResult(job, Reading(curve, suggestions, rule, job.plan.smoothing))

    return make


@pytest.fixture
def suggesting(measured, valley):
    """A function from a job and a range to a test that suggests that range."""

    def make(job: RangeTestJob, low: float, high: float) -> RangeTestResult:
        test = measured(job, valley(10 * high, low))
        assert test.range.min == pytest.approx(low, rel=1e-9)
        assert test.range.max == pytest.approx(high, rel=1e-9)
        return test

    return make


@pytest.fixture
def trained():
    """A function from a training's job and losses to its result; one epoch per ``val_losses``."""

    def make(
        job: TrainingJob, val_losses: Sequence[float], train_loss: Sequence[float] = (2.0, 1.0)
    ) -> TrainingResult:
        steps = len(train_loss) // len(val_losses)
        epochs = [
            Epoch(steps * (k + 1), loss, {"accuracy": 0.5}) for k, loss in enumerate(val_losses)
        ]
        history = TrainingHistory([0.1] * len(train_loss), list(train_loss), epochs)
        return TrainingResult(job, history)

    return make


@pytest.fixture
def study_of():
    """A function from a kind, an ``answer`` to every job, and options, to a study."""

    def make(kind: str, answer=None, *, task=None, plan=RAW, **more) -> Study:
        options, run = StudyOptions(kind=kind, **more), FakeRun(answer)
        task = task or Task(model="mlp")
        return Study(task, plan, options, TrainOptions(epochs=1), run)

    return make


@pytest.fixture
def found(study_of) -> Callable[..., Findings]:
    """A function that carries out a study made by hand."""

    def make(kind: str, answer=None, **more) -> Findings:
        return study_of(kind, answer, **more).findings()

    return make


@pytest.fixture
def refused(study_of, complains):
    """A function that checks a study is refused with these words before any job is run."""

    def check(kind: str, *words: str, **more) -> None:
        study = study_of(kind, **more)
        with complains(*words):
            study.findings()
        assert study.run.jobs == []

    return check


@pytest.fixture
def real() -> Callable[..., Findings]:
    """A function that carries out a short study with real tests of a small network on digits."""

    def make(kind: str, *, iterations: int = 50, batch_size: int = 64, **more) -> Findings:
        task = Task(model="mlp", model_args={"width": 16}, batch_size=batch_size)
        plan = RangeTestPlan(
            RangeTestOptions(iterations=iterations), Smoothing("corrected", more.pop("beta", 0.8))
        )
        run = partial(run_jobs, runtime=Runtime(device="cpu"), workers=1)
        options = StudyOptions(kind=kind, **more)
        study = Study(task, plan, options, TrainOptions(epochs=1), run)
        findings = study.findings()
        for figure in findings.figures.values():
            figure.draw_without_rendering()
        return findings

    return make


@pytest.fixture
def job() -> Callable[..., RangeTestJob]:
    """A function to a test of the small task with other seeds, read without smoothing."""

    def make(seed: int = 0, data_seed: int = 0, **changes) -> RangeTestJob:
        task = replace(Task(model="mlp"), seed=seed, data_seed=data_seed, **changes)
        return RangeTestJob(f"seed {seed} order {data_seed}", task, RAW)

    return make


@pytest.fixture
def lines() -> Callable[..., dict[str, tuple[np.ndarray, np.ndarray]]]:
    """A function to x and y of the lines by label in one of a figure's axes."""

    def make(figure: Figure, panel: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {
            str(line.get_label()): (np.array(line.get_xdata()), np.array(line.get_ydata()))
            for line in figure.axes[panel].get_lines()
        }

    return make


@pytest.fixture
def rows() -> Callable[[Figure], dict[str, tuple[float, float]]]:
    """A function to the ranges by name that the rows of a figure show."""

    def make(figure: Figure) -> dict[str, tuple[float, float]]:
        (ax,) = figure.axes
        names = [tick.get_text() for tick in ax.get_yticklabels()]
        bars = [bar for bar in ax.collections if "maximum" not in str(bar.get_label())]
        ends = [segment for bar in bars for segment in bar.get_segments()]
        return {names[round(row)]: (low, high) for (low, row), (high, _) in ends}

    return make
