"""Train a classifier of tumours with the learning rates that a range test suggests for it."""

import argparse
import json
import os
from pathlib import Path

import mlflow
import torch
from sklearn.metrics import recall_score, roc_auc_score
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from mlflow_project import Handoff, load_handoff
from tumours.data import Split, load
from tumours.model import build

HERE = Path(__file__).resolve().parent
MODEL = {"width": 64, "depth": 4}
BATCH_SIZE = 64
MOMENTUM = 0.9
JITTER = 0.1  # noise added in training, in standard deviations of a measurement


def range_test(lrrt: str, seed: int) -> str:
    """Run the stage `lrrt` on this project's model and data; return the run ID."""
    # The stage runs in a different folder and finds the package `tumours` through PYTHONPATH.
    existing = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *([existing] if existing else [])])
    parameters = {
        "dataset": "tumours.data:load",
        "model": "tumours.model:build",
        "model_args": json.dumps(MODEL),
        "optimizer": "sgd",
        "momentum": MOMENTUM,
        "weight_decay": 0,
        "batch_size": BATCH_SIZE,
        "seed": seed,
    }
    # Inside an active run, MLflow makes the run of the stage a child of that run.
    test = mlflow.projects.run(lrrt, "lrrt", parameters=parameters, env_manager="local")
    return test.run_id


def train(handoff: Handoff, epochs: int) -> None:
    """Train from the initial weights of the range test and log to the active run."""
    train_split, val_split = load()
    model = build(**MODEL)
    handoff.load_weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=MOMENTUM)
    batches = DataLoader(TensorDataset(*train_split), BATCH_SIZE, shuffle=True, drop_last=True)
    scheduler = handoff.scheduler(optimizer, total_steps=epochs * len(batches))

    for epoch in range(epochs):
        rates, losses = [], []
        for inputs, labels in batches:
            loss = cross_entropy(model(inputs + JITTER * torch.randn_like(inputs)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.append(scheduler.get_last_lr()[0])
            losses.append(loss.item())
            scheduler.step()
        mean = sum(losses) / len(losses)
        curves = {"lr": max(rates), "train_loss": mean}
        mlflow.log_metrics(curves | evaluate(model, val_split), step=epoch)


@torch.no_grad()
def evaluate(model: nn.Module, split: Split) -> dict[str, float]:
    """Return how well the model separates malignant from benign tumours."""
    inputs, labels = split
    logits = model(inputs)
    predicted = logits.argmax(dim=1)
    return {
        "val_accuracy": (predicted == labels).float().mean().item(),
        "val_sensitivity": float(recall_score(labels, predicted)),
        "val_auc": float(roc_auc_score(labels, logits[:, 1] - logits[:, 0])),
    }


def main() -> None:
    """Run the range test as a child run, then train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lrrt", default="../..", help="folder or URL of lrrt-stage")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)

    with mlflow.start_run():
        handoff = load_handoff(range_test(options.lrrt, options.seed))
        mlflow.set_tags(
            {
                "lrrt.source_run_id": handoff.run_id,
                "lrrt.weights_sha256": handoff.weights_sha256,
            }
        )
        mlflow.log_metrics(
            {"suggested_lr_max": handoff.range.max, "narrowed_lr_max": handoff.narrowed().max}
        )
        train(handoff, options.epochs)


if __name__ == "__main__":
    main()
