"""A range test, a search and a training of the digits, as a person would write them in a script.

It has the runs, points, parameters, tags, files and the model that `lrrt-stage main --refine true`
logs. What the stages do beyond that is not done here: the probe, the suggestions, the watched
training, checkpoints, digests and checks. So all of that is in the ratio.
"""

import tempfile
import warnings
from pathlib import Path

import mlflow
import numpy
import optuna
import torch
from bare_lrrt import (
    begin,
    digits,
    log,
    log_data,
    network,
    new_axes,
    plot_curve,
    range_test,
    sgd,
    shuffled,
    write_json,
)
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR


def validated(model, examples):
    """Return loss and accuracy over the validation examples, batch by batch."""
    inputs, targets = examples
    model.eval()
    loss = correct = 0.0
    with torch.no_grad():
        for some, labels in zip(inputs.split(64), targets.split(64), strict=True):
            output = model(some)
            loss += float(cross_entropy(output, labels, reduction="sum"))
            correct += int((output.argmax(1) == labels).sum())
    model.train()
    return loss / len(targets), correct / len(targets)


def train(weights, peak, epochs, train_examples, val_examples, after_epoch):
    """Train one cycle up to ``peak``; return the model and the weights of its best epoch."""
    model = network()
    model.load_state_dict(weights)
    optimizer = sgd(model, peak)
    steps = epochs * (len(train_examples[1]) // 64)
    schedule = OneCycleLR(optimizer, peak, total_steps=steps, div_factor=10, cycle_momentum=False)
    best, best_loss = None, float("inf")
    for epoch in range(epochs):
        lrs, losses = [], []
        for inputs, targets in shuffled(train_examples):
            lrs.append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            loss = cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        val_loss, val_accuracy = validated(model, val_examples)
        if val_loss < best_loss:
            best_loss = val_loss
            best = {name: value.clone() for name, value in model.state_dict().items()}
        after_epoch(epoch, lrs, torch.stack(losses).tolist(), val_loss, val_accuracy)
    return model, best


def logged_epoch(client, run_id, epoch, lrs, losses, val_loss, val_accuracy):
    """Log an epoch: its learning rates and losses, and its validation."""
    first, now = epoch * len(lrs), 0
    points = zip(lrs, losses, strict=True)
    metrics = [
        mlflow.entities.Metric(name, value, now, first + step)
        for step, pair in enumerate(points)
        for name, value in zip(("lr", "train_loss"), pair, strict=True)
    ]
    step = first + len(lrs)
    for name, value in (("val_loss", val_loss), ("val_accuracy", val_accuracy)):
        metrics.append(mlflow.entities.Metric(name, value, now, step))
    client.log_batch(run_id, metrics)


def search(weights, trials, train_examples, val_examples, storage):
    """Search the peak learning rate by trials of one epoch; return the best one."""
    client = mlflow.MlflowClient()
    with (
        mlflow.start_run(run_name="refine", nested=True) as run,
        tempfile.TemporaryDirectory() as name,
    ):
        run_id, folder = run.info.run_id, Path(name)
        log(client, run_id, params=13, tags=6)
        log_data(client, run_id, train_examples)

        def objective(trial):
            peak = trial.suggest_float("peak_lr", 0.00474, 0.0474, log=True)
            reached = []
            with mlflow.start_run(run_name=f"trial {trial.number}", nested=True) as child:
                child_id = child.info.run_id
                log(client, child_id, params=1, tags=2, scalars=2)

                def after_epoch(epoch, lrs, losses, val_loss, val_accuracy):
                    logged_epoch(client, child_id, epoch, lrs, losses, val_loss, val_accuracy)
                    trial.report(val_loss, epoch)
                    reached.append(val_loss)

                train(weights, peak, 1, train_examples, val_examples, after_epoch)
            return reached[-1]

        study = optuna.create_study(
            storage=storage,
            sampler=optuna.samplers.TPESampler(n_startup_trials=3, seed=0),
            pruner=optuna.pruners.MedianPruner(),
        )
        study.optimize(objective, n_trials=trials)
        study.trials_dataframe().to_csv(folder / "trials.csv", index=False)
        drawn = optuna.visualization.matplotlib
        for file, plot in (
            ("history.png", drawn.plot_optimization_history),
            ("loss_over_peak_lr.png", drawn.plot_slice),
        ):
            plot(study).figure.savefig(folder / file, dpi=110, bbox_inches="tight")
        for file in ("options.json", "refined_range.json"):
            write_json(folder / file, peak=study.best_params["peak_lr"], trials=trials)
        log(client, run_id, scalars=7)
        mlflow.log_artifacts(str(folder))
    return study.best_params["peak_lr"]


def plot_training(axes, lrs, losses, val_losses):
    """Draw the losses, and the learning rate on an axis of its own, over the steps."""
    every = len(losses) // len(val_losses)
    axes.plot(losses, label="training loss")
    ends = range(every, len(losses) + 1, every)
    axes.plot(ends, val_losses, "o-", label="validation loss")
    axes.set_yscale("log")
    axes.set_xlabel("iteration")
    axes.legend()
    axes.twinx().plot(lrs, color="green")


def final_training(weights, peak, epochs, train_examples, val_examples):
    """Train, and log weights, a picture and the model; return learning rates and losses."""
    client, lrs, losses, val_losses = mlflow.MlflowClient(), [], [], []
    with (
        mlflow.start_run(run_name="train", nested=True) as run,
        tempfile.TemporaryDirectory() as name,
    ):
        run_id, folder = run.info.run_id, Path(name)
        log(client, run_id, params=11, tags=9)
        log_data(client, run_id, train_examples)

        def after_epoch(epoch, epoch_lrs, epoch_losses, val_loss, val_accuracy):
            logged_epoch(client, run_id, epoch, epoch_lrs, epoch_losses, val_loss, val_accuracy)
            lrs.extend(epoch_lrs)
            losses.extend(epoch_losses)
            val_losses.append(val_loss)

        model, best = train(weights, peak, epochs, train_examples, val_examples, after_epoch)
        save_file(model.state_dict(), folder / "final_weights.safetensors")
        save_file(best, folder / "best_weights.safetensors")
        figure, (axes,) = new_axes()
        plot_training(axes, lrs, losses, val_losses)
        figure.savefig(folder / "training.png")
        write_json(folder / "options.json", epochs=epochs, peak=peak)
        log(client, run_id, scalars=12)
        mlflow.log_artifacts(str(folder))
        model.load_state_dict(best)
        model.eval()
        floats = numpy.dtype("float32")
        mlflow.pytorch.log_model(
            model,
            name="model",
            input_example=val_examples[0][:2].numpy(),
            signature=ModelSignature(
                Schema([TensorSpec(floats, (-1, 1, 8, 8))]), Schema([TensorSpec(floats, (-1, 10))])
            ),
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", "numpy"],
            serialization_format="pt2",
        )
    return lrs, losses, val_losses


def main():
    """Do all of it under one run."""
    arguments = begin()
    client = mlflow.MlflowClient()
    train_examples, val_examples = digits()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")  # Optuna marks its figures as experimental
    with (
        mlflow.start_run(run_name="main") as run,
        tempfile.TemporaryDirectory() as name,
    ):
        run_id, folder = run.info.run_id, Path(name)
        log(client, run_id, params=16, tags=8)
        log_data(client, run_id, train_examples)
        weights, ramp_lrs, ramp_losses, _ = range_test(train_examples, arguments.steps, run_id)
        storage = arguments.store.replace(".db", "-optuna.db")
        peak = search(weights, arguments.trials, train_examples, val_examples, storage)
        trained = final_training(weights, peak, arguments.epochs, train_examples, val_examples)
        figure, (left, right) = new_axes(2)
        plot_curve(left, ramp_lrs, ramp_losses)
        plot_training(right, *trained)
        figure.savefig(folder / "summary.png")
        write_json(folder / "options.json", epochs=arguments.epochs)
        log(client, run_id, scalars=15)
        mlflow.log_artifacts(str(folder))


if __name__ == "__main__":
    main()
