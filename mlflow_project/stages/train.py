"""The training stage: the weights of the range test, the narrowed range, one cycle."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import mlflow
import torch

from lrrt_stage import LRRange, LRRTError
from lrrt_stage.settings import Options, setting
from lrrt_stage.state import weights
from mlflow_project.handoff.artifacts import readable, run_file
from mlflow_project.handoff.fingerprints import fingerprint
from mlflow_project.handoff.handoff import Handoff
from mlflow_project.handoff.publishing import FINAL_WEIGHTS, FINAL_WEIGHTS_TAG
from mlflow_project.handoff.signature import sign_run
from mlflow_project.stages.refine import load_refined
from mlflow_project.stages.shared import HandoffOptions, open_handoff, task_words, validation_words
from mlflow_project.tracking import console, tags
from mlflow_project.tracking.connection import active_run_id
from mlflow_project.tracking.logged_model import log_model, require_deployable
from mlflow_project.tracking.params import log_options
from mlflow_project.tracking.runs import (
    log_range,
    log_training,
    resumed_run,
    stage_run,
    staged_files,
)
from mlflow_project.tracking.views import link, set_description
from pipeline import Narrowing, PreparedTask, Runtime, Training, TrainOptions, train
from pipeline.training.plots import training_figure

__all__ = ["TrainRunOptions", "train_fingerprint", "train_stage"]

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class TrainRunOptions(Options):
    """What a training run continues from, and whether its model is registered."""

    refine_run_id: str | None = setting(
        None, "Refinement run whose range is trained (or latest); none: the narrowed range."
    )
    register: str | None = setting(None, "Name under which the model is registered; none: not.")
    resume: str | None = setting(None, "Interrupted training run to continue; none: start anew.")


def train_stage(
    handoff_options: HandoffOptions,
    runtime: Runtime,
    narrowing: Narrowing,
    options: TrainOptions,
    run_options: TrainRunOptions,
    *,
    changes: dict[str, Any] | None = None,
    prepared: PreparedTask | None = None,
) -> str:
    """Train from a range test's weights as a run of its own and return its id.

    If training diverges, the run keeps its curves.
    """
    with stage_run("train") as run:
        handoff, prepared, lr_range = open_handoff(
            handoff_options, runtime, narrowing, changes, prepared
        )
        refine_run_id = None
        if run_options.refine_run_id is not None:
            refine_run_id, lr_range = load_refined(
                run_options.refine_run_id, handoff, handoff_options.require_signature
            )
            mlflow.set_tag(tags.STEPS["refine"], refine_run_id)
        require_deployable(prepared, run_options.register)
        run_fingerprint = train_fingerprint(prepared, handoff, lr_range, options)
        mlflow.set_tag(tags.FINGERPRINT, run_fingerprint)
        log_options(prepared.task, narrowing, options, rule=handoff.rule)
        log_range("trained", lr_range)
        with staged_files() as folder:
            checkpoint = folder / CHECKPOINT
            if run_options.resume:
                _fetch_checkpoint(run_options.resume, run_fingerprint, folder)
            training = _train(prepared, handoff, lr_range, options, checkpoint)
            checkpoint.unlink()
            final = weights.state_of(training.model)
            weights.save(final, folder / FINAL_WEIGHTS)
            mlflow.set_tag(FINAL_WEIGHTS_TAG, weights.digest(final))
            training_figure(training).savefig(folder / "training.png")
        _check_first_loss(handoff, prepared, training)
        if training.diverged:
            finite = [*map(isfinite, training.train_loss), False].index(False)
            raise LRRTError(
                f"training diverged after {finite} iterations with maximum LR "
                f"{lr_range.max:.3g}: raise narrowing_fraction, run refine, or use a different rule"
            )
        lineage = {
            tags.SOURCE: handoff.run_id,
            tags.WEIGHTS: handoff.weights_sha256,
            "lrrt.suggested_lr_min": repr(handoff.range.min),
            "lrrt.suggested_lr_max": repr(handoff.range.max),
            "lrrt.trained_lr_min": repr(lr_range.min),
            "lrrt.trained_lr_max": repr(lr_range.max),
        }
        refined = f", refined by {link(refine_run_id)}" if refine_run_id else ""
        sentences = (
            f"Trained {task_words(prepared.task)} over learning rates from **{lr_range}** "
            f"({options.schedule}), inside the range that {link(handoff.run_id)} suggests"
            f"{refined}.",
            validation_words(training.epochs[-1].values()),
            "It started from the initial weights of the range test.",
        )
        description = f"By {link(run.info.run_id)}: {' '.join(sentences)}"
        log_model(training.setup, run_options.register, lineage, description)
        set_description(*sentences)
        sign_run()
    return run.info.run_id


def train_fingerprint(
    prepared: PreparedTask, handoff: Handoff, lr_range: LRRange, options: TrainOptions
) -> str:
    """Return the fingerprint of trainings that would give the same model."""
    return fingerprint("train", prepared, source=handoff.run_id, lr_range=lr_range, train=options)


def _train(
    prepared: PreparedTask,
    handoff: Handoff,
    lr_range: LRRange,
    options: TrainOptions,
    checkpoint: Path,
) -> Training:
    """Train, and log every epoch when it ends; the epochs of a resumed training first."""
    logged = 0, 0  # iterations, epochs

    def log_new(training: Training) -> None:
        nonlocal logged
        log_training(training, *logged)
        logged = len(training.train_loss), len(training.epochs)

    with console.progress("training") as progress:

        def on_epoch(training: Training) -> None:
            log_new(training)
            progress(len(training.epochs), options.epochs)

        try:
            training = train(
                prepared,
                handoff.weights,
                lr_range,
                options,
                on_epoch=on_epoch,
                checkpoint=checkpoint,
            )
        except KeyboardInterrupt:
            if not checkpoint.exists():  # in the first epoch
                raise
            raise KeyboardInterrupt(
                f"{logged[1]} epochs are kept; lrrt-stage train with the same options, "
                f"--lrrt-run-id {handoff.run_id} and --resume {active_run_id()} continues"
            ) from None
    log_new(training)  # a training that was interrupted after its last epoch has no epoch left
    return training


def _fetch_checkpoint(run_id: str, run_fingerprint: str, folder: Path) -> None:
    resumed = resumed_run(run_id, run_fingerprint)
    mlflow.set_tag("lrrt.resumed_run_id", run_id)
    path = run_file(resumed, CHECKPOINT, folder)
    with readable(resumed, path):
        torch.load(path, weights_only=True, map_location="cpu")


def _check_first_loss(handoff: Handoff, prepared: PreparedTask, training: Training) -> None:
    """Log whether the first loss equals that of the range test bit for bit; print if not."""
    first, expected = training.train_loss[0], float(handoff.curve.loss[0])
    mlflow.log_metrics({"first_loss": first, "range_test_first_loss": expected})
    mlflow.set_tag("lrrt.first_loss_equal", str(first == expected).lower())
    if (
        first != expected
        and prepared.task == handoff.task
        and str(prepared.device) == handoff.device
    ):
        console.note(
            f"the first loss {first!r} is not the range test's {expected!r}, on the same device: "
            "a different version of torch or number of threads changes the last digits"
        )
