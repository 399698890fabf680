"""A range test of the digits with MLflow, as a person would write it in a script of their own.

It takes as many steps and logs as many points, parameters, tags and files as `lrrt-stage lrrt`.
What the stage does beyond that is not done here: the probe, the suggestions and the confidence in
them, digests and checks, what is kept while the store is away. So all of that is in the ratio.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import mlflow
import torch
from mlflow.entities import Metric, Param, RunTag
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.functional import cross_entropy

CURVES = ("lr", "train_loss", "smoothed_loss", "log10_lr", "probe_loss", "probe_baseline")
BATCH_SIZE, EVALUATIONS = 64, 29


def digits():
    """Return normalised training and validation examples."""
    data = load_digits()
    images = torch.from_numpy(data.images / 16).float()[:, None]
    labels = torch.from_numpy(data.target).long()
    kept, held = train_test_split(
        torch.arange(len(labels)).numpy(), test_size=0.2, stratify=data.target, random_state=0
    )
    images = (images - images[kept].mean()) / images[kept].std()
    return (images[kept], labels[kept]), (images[held], labels[held])


def network():
    """Return the network that the stage uses by default, with the weights of seed 0."""
    torch.manual_seed(0)

    def block(before, after):
        convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]

    return nn.Sequential(
        *block(1, 32), *block(32, 64), nn.MaxPool2d(2), *block(64, 128), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


def sgd(model, lr):
    """Return the optimizer that the stage uses by default."""
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)


def shuffled(examples):
    """Yield the batches of an epoch."""
    inputs, targets = examples
    whole = len(targets) // BATCH_SIZE * BATCH_SIZE
    for places in torch.randperm(len(targets))[:whole].split(BATCH_SIZE):
        yield inputs[places], targets[places]


def ramp(model, examples, steps):
    """Train while the learning rate grows from 1e-7, and return learning rates and losses."""
    optimizer = sgd(model, 1e-7)
    lrs, losses = [], []
    model.train()
    while len(losses) < steps:
        for inputs, targets in shuffled(examples):
            lrs.append(1e-7 * 1e9 ** (len(losses) / 99))
            optimizer.param_groups[0]["lr"] = lrs[-1]
            optimizer.zero_grad()
            loss = cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            if len(losses) == steps:
                break
    return lrs, torch.stack(losses).tolist()


def log(client, run_id, *, params=0, tags=0, scalars=0, series=None):
    """Log parameters, tags and values with one request, of as many as the stage logs."""
    now = int(time.time() * 1000)
    metrics = [Metric(f"scalar_{number}", float(number), now, 0) for number in range(scalars)]
    for name, values in (series or {}).items():
        metrics += [Metric(name, value, now, step) for step, value in enumerate(values)]
    client.log_batch(
        run_id,
        metrics,
        [Param(f"param_{number}", str(number)) for number in range(params)],
        [RunTag(f"tag_{number}", 64 * "0") for number in range(tags)],
    )


def log_data(client, run_id, examples):
    """Log the training data as an input of the run."""
    from mlflow.entities import Dataset, DatasetInput

    dataset = Dataset("digits", str(len(examples[1])), "code", "{}")
    client.log_inputs(run_id, [DatasetInput(dataset, [])])


def new_axes(columns=1):
    """Return a figure and its axes, without a window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5 * columns, 5), dpi=120, layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def plot_curve(axes, lrs, losses):
    """Draw the losses over the learning rates."""
    axes.plot(lrs, losses, label="training loss")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.legend()


def write_json(path, **content):
    """Write a small file of options or results."""
    path.write_text(json.dumps(content, indent=2))


def range_test(examples, steps, parent=None):
    """Run and log a range test; return its weights, learning rates, losses and run."""
    client = mlflow.MlflowClient()
    with (
        mlflow.start_run(run_name="lrrt", nested=parent is not None) as run,
        tempfile.TemporaryDirectory() as name,
    ):
        run_id, folder = run.info.run_id, Path(name)
        log(client, run_id, params=11)
        log_data(client, run_id, examples)
        model = network()
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        save_file(weights, folder / "initial_weights.safetensors")
        lrs, losses = ramp(model, examples, steps)
        smoothed, mean = [], losses[0]
        for loss in losses:
            mean = 0.9 * mean + 0.1 * loss
            smoothed.append(mean)
        curves = (lrs, losses, smoothed, [math.log10(lr) for lr in lrs], losses, losses)
        series = dict(zip(CURVES, curves, strict=True))
        for name in ("probe_loss", "probe_baseline"):
            series[name] = losses[:EVALUATIONS]  # as many as the stage evaluates
        log(client, run_id, tags=11, scalars=10, series=series)
        lines = [",".join(CURVES), *(",".join(map(str, row)) for row in zip(*curves, strict=True))]
        (folder / "curve.csv").write_text("\n".join(lines))
        for file in ("options.json", "task.json", "suggestions.json"):
            write_json(folder / file, lr_start=1e-7, lr_end=100, steps=steps)
        figure, (axes,) = new_axes()
        plot_curve(axes, lrs, losses)
        figure.savefig(folder / "lrrt_curve.png")
        mlflow.log_artifacts(str(folder))
    return weights, lrs, losses, run_id


def begin():
    """Read the arguments of the script, and choose the store; return the arguments."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    mlflow.set_tracking_uri(arguments.store)
    mlflow.set_experiment("lrrt")
    return arguments


if __name__ == "__main__":
    range_test(digits()[0], begin().steps)
