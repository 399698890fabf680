"""The training stage: the weights of the range test, the suggested range, one cycle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import copyfile
from typing import Any

from lrrt_stage import LRCurve, LRRange, LRRTError
from lrrt_stage.plots.drawing import save_figure
from lrrt_stage.settings import require
from lrrt_stage.state import weights
from mlflow_project.handoff.artifacts import load_artifact, readable, sha256
from mlflow_project.handoff.fingerprints import fingerprint
from mlflow_project.handoff.handoff import Handoff
from mlflow_project.handoff.published import (
    BEST_WEIGHTS,
    BEST_WEIGHTS_TAG,
    FINAL_WEIGHTS,
    FINAL_WEIGHTS_TAG,
)
from mlflow_project.handoff.signature import check_signature, sign_run
from mlflow_project.stages.options import HandoffOptions, TrainRunOptions
from mlflow_project.stages.refined import load_refined
from mlflow_project.stages.shared import open_handoff, task_words, validation_words
from mlflow_project.tracking import console, tags
from mlflow_project.tracking.kept import forget, held, kept_run
from mlflow_project.tracking.logged_model import log_model, require_deployable
from mlflow_project.tracking.params import log_options
from mlflow_project.tracking.record import RunRecord, active_record, get_run
from mlflow_project.tracking.runs import (
    find_runs,
    log_range,
    log_training,
    require_resumable,
    stage_run,
)
from mlflow_project.tracking.senders import FILES
from mlflow_project.tracking.store import PATIENCE, ask, uninterrupted
from mlflow_project.tracking.views import link, set_description
from pipeline import Epoch, Narrowing, PreparedTask, Runtime, Training, TrainOptions, train
from pipeline.training.checkpoint import read_checkpoint
from pipeline.training.plots import training_figure

__all__ = ["train_fingerprint", "train_stage"]

CHECKPOINT, CHECKPOINT_TAG = tags.CHECKPOINT_FILE, tags.CHECKPOINT


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

    A training that is being ruined starts again with lower learning rates; the run keeps the curves
    of all attempts, also if none of them succeeds.
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
        same = partial(train_fingerprint, prepared, handoff, lr_range, options)
        exact, resumes = same(), same(to_the_bit=False)
        run.set_tags({tags.RESUMES: resumes})
        log_options(prepared.task, narrowing, options, rule=handoff.rule)
        log_range("trained", lr_range)
        checkpoint = run.files / CHECKPOINT
        resumed: Path | None = None
        begun_as: str | None = exact
        if run_options.resume:
            resumed, begun_as = _fetch_checkpoint(run_options.resume, resumes, checkpoint)
        if begun_as == exact:  # otherwise it is no training that would be the same again
            run.set_tags({tags.FINGERPRINT: exact})
        curve = _curve_to_watch_by(run, handoff, lr_range, options)
        if curve is None:
            options = replace(options, attempts=1)
        run.begin_work()
        with _resumable(run, checkpoint, handoff, refine_run_id):
            training = _train(run, prepared, handoff, lr_range, options, checkpoint, curve)
            with run.bundle():
                _keep_weights(run, training)  # before anything else, which may fail
                save_figure(training_figure(training.joined()), run.files / "training.png")
                _check_first_loss(run, handoff, prepared, training)
                if not training.reason:
                    lr_range, epoch = training.range, _kept_epoch(training, options)
                    if epoch is not training.epochs[-1] and training.best_weights is not None:
                        weights.load_into(training.model, training.best_weights)
                    refined = f", refined by {link(refine_run_id)}" if refine_run_id else ""
                    place = handoff.place(lr_range)
                    if training.lost:
                        place = f"lower than planned, from {handoff.place(handoff.range)}"
                    what = task_words(prepared.task)
                    sentences = (
                        f"Trained {what} over learning rates from **{lr_range}** "
                        f"({options.schedule}), {place}{refined}.",
                        _attempt_words(training),
                        validation_words(training.epochs[-1].values()),
                        _kept_words(training, epoch),
                        "It started from the initial weights of the range test.",
                    )
                    description = f"By {link(run.run_id)}: {' '.join(filter(None, sentences))}"
                    lineage = handoff.lineage | {
                        "lrrt.suggested_lr_min": repr(handoff.range.min),
                        "lrrt.suggested_lr_max": repr(handoff.range.max),
                        "lrrt.trained_lr_min": repr(lr_range.min),
                        "lrrt.trained_lr_max": repr(lr_range.max),
                    }
                    step = training.joined().starts[-1] + epoch.iteration
                    log_model(training.setup, run_options.register, lineage, description, step)
                    set_description(*filter(None, sentences))
                    sign_run()
            checkpoint.unlink(missing_ok=True)  # it may not have fitted on the disk
        if training.reason:
            number = len(training.lost) + 1
            which = "it was lost" if number == 1 else f"all {number} attempts were lost, the last"
            raise LRRTError(
                f"the training did not succeed: {which} with maximum LR {training.range.max:.3g} "
                f"({training.reason}): raise narrowing_fraction, run refine, or use a different "
                "rule"
            )
    if resumed is not None:
        forget(resumed)
    return run.run_id


def train_fingerprint(
    prepared: PreparedTask,
    handoff: Handoff,
    lr_range: LRRange,
    options: TrainOptions,
    *,
    to_the_bit: bool = True,
) -> str:
    """Return the fingerprint of trainings that would give the same model."""
    inputs: dict[str, Any] = {"source": handoff.uuid, "lr_range": lr_range, "train": options}
    return fingerprint("train", prepared, to_the_bit=to_the_bit, **inputs)


def interrupted_training(resumes: str) -> str | None:
    """Return the newest training that ended early, has a checkpoint, and can be gone on with.

    ``resumes`` is its fingerprint but for the last bits.
    """
    for run in find_runs({tags.RESUMES: resumes, tags.STAGE: "train"}):
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
        epochs = len(read_checkpoint(checkpoint)["history"][-1])
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
    curve: LRCurve | None,
) -> Training:
    """Train, and log every epoch when it ends; the epochs of a resumed training first.

    The steps of all attempts are counted on, so that the UI shows one after the other.
    """
    logged = 0, 0  # iterations, epochs
    told = 0  # attempts

    def log_new(training: Training) -> None:
        nonlocal logged, told
        history, number = training.joined(), len(training.lost) + 1
        if number > max(told, 1):
            run.log_series({"attempt": [*range(told + 1, number + 1)]}, history.starts[told:])
            told = number
            log_range("trained", training.range, number - 1)
            reasons = [f"maximum LR {lost.range.max:.3g}: {lost.reason}" for lost in training.lost]
            run.set_tags({tags.ATTEMPTS: str(number), tags.LOST: "; ".join(reasons)})
        if training.reason and number < options.attempts:
            console.note(
                f"attempt {number} with maximum LR {training.range.max:.3g} was lost "
                f"({training.reason}): starting again with a third of it"
            )
        log_training(history, *logged)
        logged = len(history.train_loss), len(history.epochs)

    with console.progress("training") as progress:

        def on_epoch(training: Training) -> None:
            log_new(training)
            progress(len(training.epochs), options.epochs)

        training = train(
            prepared,
            handoff.weights,
            lr_range,
            options,
            curve=curve,
            on_epoch=on_epoch,
            checkpoint=checkpoint,
        )
    log_new(training)  # a training that was interrupted after its last epoch has no epoch left
    return training


def _curve_to_watch_by(
    run: RunRecord, handoff: Handoff, lr_range: LRRange, options: TrainOptions
) -> LRCurve | None:
    """Return the range test that tells a ruined training; None if there is to be one attempt.

    Raises
    ------
    LRRTError
        If that curve shows no fall of the loss.
    """
    if options.attempts == 1:
        return None
    if tags.MISMATCH in run.tags:
        console.note("the training is not watched, since its range test is of a different task")
        return None
    handoff.guard(lr_range, options.attempts)
    return handoff.curve


def _keep_weights(run: RunRecord, training: Training) -> None:
    """Make the last weights and the best ones artifacts, and log the losses of both."""
    kept: dict[str, tuple[str, weights.State]]
    kept = {FINAL_WEIGHTS: (FINAL_WEIGHTS_TAG, weights.state_of(training.model))}
    if training.best_weights is not None:
        kept[BEST_WEIGHTS] = (BEST_WEIGHTS_TAG, training.best_weights)
    for name, (_, state) in kept.items():
        weights.save(state, run.files / name)
        run.log_file(name)
    run.set_tags({tag: weights.digest(state) for tag, state in kept.values()})
    if (best := training.best_epoch) is not None:
        number = training.epochs.index(best) + 1
        values = {f"best_{name}": value for name, value in best.values().items()}
        run.log_metrics({"best_epoch": number} | values)
    run.log_metrics({"attempts": len(training.lost) + 1})


def _kept_epoch(training: Training, options: TrainOptions) -> Epoch:
    """Return the epoch whose weights are those of the logged model."""
    best = training.best_epoch if options.keep == "best" else None
    return best or training.epochs[-1]


def _kept_words(training: Training, epoch: Epoch) -> str:
    """Return of which epoch the logged model is as a sentence; empty for the last one."""
    if epoch is training.epochs[-1]:
        return ""
    number = training.epochs.index(epoch) + 1
    return (
        f"The logged model is that of epoch {number}, whose validation loss of "
        f"**{epoch.val_loss:.4g}** is the lowest."
    )


def _attempt_words(training: Training) -> str:
    """Return the attempts that were lost as a sentence; empty without any."""
    lost = [f"with maximum LR {each.range.max:.3g} ({each.reason})" for each in training.lost]
    return f"It is attempt {len(lost) + 1}; lost were those {', and '.join(lost)}." if lost else ""


def _fetch_checkpoint(name: str, resumes: str, checkpoint: Path) -> tuple[Path | None, str | None]:
    """Copy the checkpoint of an interrupted training from its folder, or download it.

    Returns that folder, if the training is kept here, and the fingerprint of the training.
    """
    folder = kept_run(name)
    if folder is None:
        resumed = get_run(name)
        require_resumable(resumed, resumes, tags.RESUMES)
        check_signature(resumed)
        load_artifact(resumed, CHECKPOINT, partial(copyfile, dst=checkpoint), CHECKPOINT_TAG)
    else:
        with held(folder) as kept:
            ask(kept.open_run)  # whose id becomes a tag of this one
            resumed, found = kept.state.as_run(), folder / FILES / CHECKPOINT
            require_resumable(resumed, resumes, tags.RESUMES)
            require(found.is_file(), f"run {name} has no checkpoint yet: leave resume out")
            copyfile(found, checkpoint)
    active_record().set_tags({"lrrt.resumed_run_id": resumed.info.run_id})
    with readable(resumed, CHECKPOINT):
        read_checkpoint(checkpoint)
    return folder, resumed.data.tags.get(tags.FINGERPRINT)


def _check_first_loss(
    run: RunRecord, handoff: Handoff, prepared: PreparedTask, training: Training
) -> None:
    """Log whether the first loss equals that of the range test bit for bit; print if not."""
    first, expected = training.joined().train_loss[0], float(handoff.curve.loss[0])
    run.log_metrics({"first_loss": first, "range_test_first_loss": expected})
    run.set_tags({"lrrt.first_loss_equal": str(first == expected).lower()})
    if (
        first != expected
        and prepared.task == handoff.task
        and str(prepared.device) == handoff.device
    ):
        console.note(
            f"the first loss {first!r} is not the range test's {expected!r}, on the same device: "
            "a different version of torch or number of threads or processes changes the last digits"
        )
