"""The commands behind ``MLproject``, also subcommands of ``lrrt-stage``.

Each imports its stage when it runs: help, and the refusal of an option, need neither torch nor
MLflow.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, get_type_hints

import rich_click as click

from lrrt_stage.curve.smoothing import Smoothing
from lrrt_stage.measure.options import RangeTestOptions
from lrrt_stage.rules.registry import SuggestionOptions
from lrrt_stage.settings import require
from mlflow_project.cli.options import (
    OptionType,
    OutputOptions,
    examples,
    from_values,
    given,
    options_of,
    store_options,
    tracked,
)
from mlflow_project.cli.startup import begin_work
from mlflow_project.stages.options import (
    CheckOptions,
    HandoffOptions,
    MainOptions,
    SignatureOptions,
    TrainRunOptions,
)
from mlflow_project.tracking import console
from mlflow_project.tracking.environment import OutageOptions
from pipeline.decide.options import ConsensusOptions
from pipeline.ranks.options import RankOptions, launched_size
from pipeline.studies.options import StudyOptions
from pipeline.task.plan import ValidationOptions
from pipeline.task.recipes import RecipeOptions
from pipeline.task.tasks import Runtime, Task
from pipeline.training.narrowing import Narrowing
from pipeline.training.options import RefineOptions, ScheduleOptions, TrainOptions

__all__ = ["commands"]

FITS, FITS_NO_LONGER = 0, 3
"""Exit codes of ``check``."""


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        # MLflow hands -P batch_size=32 on as --batch_size 32.
        "token_normalize_func": lambda token: token.replace("_", "-"),
        "max_content_width": 100,
    }
)
@click.version_option(package_name="lrrt-stage", prog_name="lrrt-stage")
def commands() -> None:
    """Pick a learning rate on exactly seeded initial weights, and train from those weights."""


@commands.command(
    "lrrt",
    epilog=examples(
        "lrrt-stage lrrt",
        "lrrt-stage lrrt --dataset cifar10 --model resnet56 --batch-size 512 --augment crop-flip",
        "lrrt-stage lrrt --dataset cifar10 --model resnet56 --batch-size 512 --recipe keras",
        "lrrt-stage lrrt --tests 3 --vary initializations",
        "mlflow run . -e lrrt -P seed=3 -P rule=steepest",
    ),
)
@options_of("Recipe", RecipeOptions)
@options_of("Task", Task)
@options_of("Range test", RangeTestOptions, ValidationOptions)
@options_of("Suggestion", SuggestionOptions, Smoothing, ConsensusOptions)
@options_of("Where it runs", Runtime, RankOptions)
@tracked
def lrrt_command(**values: Any) -> None:
    """Run the range test on seeded initial weights; publish weights, curve and suggestions."""
    from mlflow_project.stages.lrrt import range_test_stage

    _run("Range test", range_test_stage, values)


@commands.command(
    "refine",
    epilog=examples(
        "lrrt-stage refine",
        "lrrt-stage refine --trials 16 --storage sqlite:///optuna.db",
        "mlflow run . -e refine -P lrrt_run_id=RUN_ID",
    ),
)
@options_of("Range test", HandoffOptions)
@options_of("Narrowing", Narrowing)
@options_of("Search", RefineOptions)
@options_of("Training that follows", ScheduleOptions)
@options_of("Task (taken from the range test)", Task, defaults=False)
@options_of("Where it runs", Runtime, RankOptions)
@tracked
def refine_command(**values: Any) -> None:
    """Search the peak learning rate inside the suggested range, from the same weights."""
    from mlflow_project.stages.refine import refine_stage

    _run(
        "Refinement",
        refine_stage,
        values,
        changes=given(values, Task),
    )


@commands.command(
    "train",
    epilog=examples(
        "lrrt-stage train",
        "lrrt-stage train --lrrt-run-id RUN_ID --epochs 30 --schedule triangular",
        "mlflow run . -e train -P lrrt_run_id=RUN_ID -P refine_run_id=latest",
    ),
)
@options_of("Range test", HandoffOptions)
@options_of("Narrowing", Narrowing)
@options_of("Training", TrainOptions, TrainRunOptions)
@options_of("Task (taken from the range test)", Task, defaults=False)
@options_of("Where it runs", Runtime, RankOptions)
@tracked
def train_command(**values: Any) -> None:
    """Train from the weights of a range test, in the range that it suggests."""
    from mlflow_project.stages.train import train_stage

    _run("Training", train_stage, values, changes=given(values, Task))


@commands.command(
    "main",
    epilog=examples(
        "lrrt-stage main",
        "lrrt-stage main --dataset imagefolder:photos --model resnet18 --epochs 30 --reuse true",
        "mlflow run . -e main -P refine=true",
    ),
)
@options_of("Steps", MainOptions)
@options_of("Recipe", RecipeOptions)
@options_of("Task", Task)
@options_of("Range test", RangeTestOptions, ValidationOptions)
@options_of("Suggestion", SuggestionOptions, Smoothing, ConsensusOptions)
@options_of("Narrowing", Narrowing)
@options_of("Search", RefineOptions)
@options_of("Training", TrainOptions)
@options_of("Where it runs", Runtime, RankOptions)
@tracked
def main_command(**values: Any) -> None:
    """Run range test, optional refinement, and training as children of one run."""
    from mlflow_project.stages.main import main_stage

    _run("Main", main_stage, values)


@commands.command(
    "check",
    epilog=examples(
        "lrrt-stage check",
        "lrrt-stage check --baseline models:/digits/3 --lr 0.05",
        "lrrt-stage check --baseline RUN_ID --batch-size 256",
        "mlflow run . -e check -P baseline=models:/digits@champion",
    ),
)
@options_of("Check", CheckOptions)
@options_of("Several tests (taken from the baseline)", ConsensusOptions, defaults=False)
@options_of("Task (taken from the baseline)", Task, defaults=False)
@options_of("Where it runs", Runtime, RankOptions)
@tracked
def check_command(**values: Any) -> int:
    """Check whether the learning rate in use still fits today's code and data. Exit code 0 or 3.

    The range test of the baseline is run again on today's code and data. Exit code 3 means that
    the learning rate lies outside the range that is suggested today, or that the range has moved
    by more than the uncertainty of both tests.
    """
    from mlflow_project.stages.check import check_stage

    found = _run(
        "Check",
        check_stage,
        values,
        changes=given(values, Task),
        consensus_changes=given(values, ConsensusOptions),
    )
    return FITS if found["fits"] else FITS_NO_LONGER


@commands.command(
    "compare",
    epilog=examples(
        "lrrt-stage compare RUN_ID RUN_ID",
        "lrrt-stage compare latest models:/digits/3",
        "mlflow run . -e compare -P runs=RUN_ID,RUN_ID",
    ),
)
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN…", type=OptionType(str))
@options_of("Runs", SignatureOptions)
@tracked
def compare_command(runs: tuple[str, ...], **values: Any) -> None:
    """Draw the curves and ranges of several range tests in one figure.

    RUN is the id of a run (lrrt, train, main, refine, check or a test of a study), or
    models:/NAME/VERSION.
    """
    from mlflow_project.stages.compare import compare_stage

    named = [name for text in runs for name in text.split(",") if name]
    _run("Comparison", compare_stage, values, runs=named)


@commands.command(
    "study",
    epilog=examples(
        "lrrt-stage study",
        "lrrt-stage study --kind data-order --dataset photographs --model resnet20",
        "lrrt-stage study --kind mismatch --tests 10",
        "mlflow run . -e study -P kind=batch-size -P batch_sizes=16,64,256",
    ),
)
@options_of("Study", StudyOptions)
@options_of("Recipe", RecipeOptions)
@options_of("Task", Task)
@options_of("Range test", RangeTestOptions, ValidationOptions)
@options_of("Suggestion", SuggestionOptions, Smoothing)
@options_of("Training (mismatch)", TrainOptions)
@options_of("Where it runs", Runtime)
@tracked
def study_command(**values: Any) -> None:
    """Study the reliability of suggestions: many range tests, with figures and a report."""
    from mlflow_project.stages.study import study_stage

    _run("Study", study_stage, values)


@commands.command(
    "sync",
    epilog=examples("lrrt-stage sync", "lrrt-stage sync .lrrt/RUN_ID"),
)
@click.argument("path", required=False)
@store_options
def sync_command(path: str | None, **values: Any) -> None:
    """Send to the store what is kept on disk: runs that it was away for, or that were killed.

    PATH is the folder of a run, or a work folder; by default, it is the one here. Runs of another
    store than the one that is used here are sent if --tracking-uri names it.
    """
    from mlflow_project.tracking.kept import sync
    from mlflow_project.tracking.record import use_outage_options

    begin_work()
    use_outage_options(from_values(OutageOptions, values))
    sent = sync(path, values["tracking_uri"])
    console.note("\n".join(f"sent: run {run_id}" for run_id in sent) or "nothing is kept here")


def _run(
    title: str, stage: Callable[..., str], values: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """Check all options, then the store, then run the stage; print and return its result.

    Every parameter of the stage whose type is a dataclass of options is filled from the command
    line; ``more`` has its other parameters.
    """
    from mlflow_project.cli.outcome import show_result
    from mlflow_project.handoff.signature import REQUIRED
    from mlflow_project.tracking.connection import connect
    from mlflow_project.tracking.kept import mark_ended
    from mlflow_project.tracking.record import use_outage_options
    from pipeline.ranks.launch import ranks_of

    begin_work()
    preset = from_values(RecipeOptions, values).values if "recipe" in values else {}
    options = {
        name: from_values(hint, values, preset)
        for name, hint in get_type_hints(stage).items()
        if isinstance(hint, type) and is_dataclass(hint)
    }
    if any(getattr(each, "require_signature", False) for each in options.values()):
        os.environ[REQUIRED] = "true"  # also of the runs that a step finds by itself
    output = from_values(OutputOptions, values)
    use_outage_options(from_values(OutageOptions, values))
    require(
        "processes" in values or launched_size() == 1,
        f"{title.lower()} runs its tests side by side, and not on several ranks: start it without "
        "a launcher",
    )
    ranks = from_values(RankOptions, values) if "processes" in values else RankOptions()
    context = click.get_current_context()
    assert context is not None
    arguments = context.find_root().obj or ()
    with ranks_of(ranks, arguments, values.get("device", "auto")):
        connect(values["tracking_uri"], values["experiment"])
        mark_ended()
        return show_result(title, stage(**options, **more), output)
