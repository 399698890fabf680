"""The training stage: the weights of the range test, the narrowed range, one cycle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from shutil import copyfile
from typing import Any

from lrrt_stage import LRRange, LRRTError
from lrrt_stage.plots.drawing import save_figure
from lrrt_stage.settings import Options, require, setting
from lrrt_stage.state import weights
from mlflow_project.handoff.artifacts import load_artifact, readable, sha256
from mlflow_project.handoff.fingerprints import fingerprint
from mlflow_project.handoff.handoff import Handoff
from mlflow_project.handoff.publishing import FINAL_WEIGHTS, FINAL_WEIGHTS_TAG
from mlflow_project.handoff.signature import check_signature, sign_run
from mlflow_project.stages.refine import load_refined
from mlflow_project.stages.shared import HandoffOptions, open_handoff, task_words, validation_words
from mlflow_project.tracking import console, tags
from mlflow_project.tracking.kept import forget, held, kept_run
from mlflow_project.tracking.logged_model import log_model, require_deployable
from mlflow_project.tracking.outbox import FILES
from mlflow_project.tracking.params import log_options
from mlflow_project.tracking.record import RunRecord, active_record, get_run
from mlflow_project.tracking.runs import (
    find_runs,
    log_range,
    log_training,
    require_resumable,
    stage_run,
)
from mlflow_project.tracking.store import PATIENCE, uninterrupted
from mlflow_project.tracking.views import link, set_description
from pipeline import Narrowing, PreparedTask, Runtime, Training, TrainOptions, train
from pipeline.training.checkpoint import read_checkpoint
from pipeline.training.plots import training_figure

__all__ = ["TrainRunOptions", "train_fingerprint", "train_stage"]

CHECKPOINT, CHECKPOINT_TAG = tags.CHECKPOINT_FILE, tags.CHECKPOINT


@dataclass(frozen=True)
class TrainRunOptions(Options):
    """What a training run continues from, and whether its model is registered."""

    refine_run_id: str | None = setting(
        None, "Refinement run whose range is trained (or latest); none: the narrowed range."
    )
    register: str | None = setting(None, "Name under which the model is registered; none: not.")
    resume: str | None = setting(
        None, "Interrupted training to continue: its run ID or folder; none: start anew."
    )


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
            run.set_tags({tags.STEPS["refine"]: refine_run_id})
        require_deployable(prepared, run_options.register)
        run_fingerprint = train_fingerprint(prepared, handoff, lr_range, options)
        run.set_tags({tags.FINGERPRINT: run_fingerprint})
        log_options(prepared.task, narrowing, options, rule=handoff.rule)
        log_range("trained", lr_range)
        checkpoint = run.files / CHECKPOINT
        resumed = None
        if run_options.resume:
            resumed = _fetch_checkpoint(run_options.resume, run_fingerprint, checkpoint)
        run.begin_work()
        with _resumable(run, checkpoint, handoff, refine_run_id):
            training = _train(run, prepared, handoff, lr_range, options, checkpoint)
            final = weights.state_of(training.model)
            weights.save(final, run.files / FINAL_WEIGHTS)
            run.set_tags({FINAL_WEIGHTS_TAG: weights.digest(final)})
            run.log_file(FINAL_WEIGHTS)  # before anything else, which may fail
            save_figure(training_figure(training), run.files / "training.png")
            _check_first_loss(run, handoff, prepared, training)
            if not training.diverged:
                refined = f", refined by {link(refine_run_id)}" if refine_run_id else ""
                sentences = (
                    f"Trained {task_words(prepared.task)} over learning rates from **{lr_range}** "
                    f"({options.schedule}), inside the range that {link(handoff.run_id)} suggests"
                    f"{refined}.",
                    validation_words(training.epochs[-1].values()),
                    "It started from the initial weights of the range test.",
                )
                description = f"By {link(run.run_id)}: {' '.join(sentences)}"
                lineage = handoff.lineage | {
                    "lrrt.suggested_lr_min": repr(handoff.range.min),
                    "lrrt.suggested_lr_max": repr(handoff.range.max),
                    "lrrt.trained_lr_min": repr(lr_range.min),
                    "lrrt.trained_lr_max": repr(lr_range.max),
                }
                log_model(training.setup, run_options.register, lineage, description)
                set_description(*sentences)
                sign_run()
            checkpoint.unlink(missing_ok=True)  # it may not have fitted on the disk
        if training.diverged:
            finite = [*map(isfinite, training.train_loss), False].index(False)
            raise LRRTError(
                f"training diverged after {finite} iterations with maximum LR "
                f"{lr_range.max:.3g}: raise narrowing_fraction, run refine, or use a different rule"
            )
    if resumed is not None:
        forget(resumed)
    return run.run_id


def train_fingerprint(
    prepared: PreparedTask, handoff: Handoff, lr_range: LRRange, options: TrainOptions
) -> str:
    """Return the fingerprint of trainings that would give the same model."""
    return fingerprint("train", prepared, source=handoff.uuid, lr_range=lr_range, train=options)


def interrupted_training(run_fingerprint: str) -> str | None:
    """Return the newest training of this fingerprint that ended early, and has a checkpoint."""
    for run in find_runs({tags.FINGERPRINT: run_fingerprint, tags.STAGE: "train"}):
        folder = kept_run(run.info.run_id)
        if run.info.status in ("KILLED", "FAILED") and (
            CHECKPOINT_TAG in run.data.tags
            if folder is None
            else (folder / FILES / CHECKPOINT).is_file()
        ):
            return str(run.info.run_id)
    return None


@contextmanager
def _resumable(
    run: RunRecord, checkpoint: Path, handoff: Handoff, refine_run_id: str | None
) -> Iterator[None]:
    """Record the digest of the checkpoint if the block ends early, and say how to go on."""
    try:
        yield
    except BaseException as error:
        if not checkpoint.exists():  # in the first epoch
            raise
        PATIENCE.hurry()
        with uninterrupted():  # the digest is what the checkpoint is read with
            run.set_tags({CHECKPOINT_TAG: sha256(checkpoint)})
        sign_run()
        if not isinstance(error, KeyboardInterrupt):
            raise
        epochs = len(read_checkpoint(checkpoint)["epochs"])
        refined = f"--refine-run-id {refine_run_id}, " if refine_run_id else ""
        raise KeyboardInterrupt(
            f"{epochs} epochs are kept; lrrt-stage train with the same options, {refined}"
            f"--lrrt-run-id {handoff.run_id} and --resume {run.run_id} continues"
        ) from None


def _train(
    run: RunRecord,
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

        training = train(
            prepared,
            handoff.weights,
            lr_range,
            options,
            on_epoch=on_epoch,
            checkpoint=checkpoint,
        )
    log_new(training)  # a training that was interrupted after its last epoch has no epoch left
    return training


def _fetch_checkpoint(name: str, run_fingerprint: str, checkpoint: Path) -> Path | None:
    """Copy the checkpoint of an interrupted training from its folder, or download it.

    Returns that folder, if the training is kept here.
    """
    folder = kept_run(name)
    if folder is None:
        resumed = get_run(name)
        require_resumable(resumed, run_fingerprint)
        check_signature(resumed)
        load_artifact(resumed, CHECKPOINT, partial(copyfile, dst=checkpoint), CHECKPOINT_TAG)
    else:
        with held(folder) as kept:
            resumed, found = kept.state.as_run(), folder / FILES / CHECKPOINT
            require_resumable(resumed, run_fingerprint)
            require(found.is_file(), f"run {name} has no checkpoint yet: leave resume out")
            copyfile(found, checkpoint)
    active_record().set_tags({"lrrt.resumed_run_id": resumed.info.run_id})
    with readable(resumed, CHECKPOINT):
        read_checkpoint(checkpoint)
    return folder


def _check_first_loss(
    run: RunRecord, handoff: Handoff, prepared: PreparedTask, training: Training
) -> None:
    """Log whether the first loss equals that of the range test bit for bit; print if not."""
    first, expected = training.train_loss[0], float(handoff.curve.loss[0])
    run.log_metrics({"first_loss": first, "range_test_first_loss": expected})
    run.set_tags({"lrrt.first_loss_equal": str(first == expected).lower()})
    if (
        first != expected
        and prepared.task == handoff.task
        and str(prepared.device) == handoff.device
    ):
        console.note(
            f"the first loss {first!r} is not the range test's {expected!r}, on the same device: "
            "a different version of torch or number of threads changes the last digits"
        )
