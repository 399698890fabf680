"""A LightningModule whose fit starts again with lower learning rates if it is being ruined.

python -m examples.guarded.lightning_module
"""

import mlflow
import torch
from lightning.pytorch import Trainer, seed_everything
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from examples.tracked.lightning_module import Classifier
from lrrt_stage import Guard, LRRange
from lrrt_stage.adapters import from_lightning
from mlflow_project import track_range_test
from mlflow_project.callbacks.lightning import WatchAttempt

DARING = LRRange(0.3, 3.0)
"""Far above what the range test suggests, so that the first attempt is lost."""


def main() -> Guard:
    """Fit a new module for every attempt, from the weights of the range test."""
    seed_everything(0, verbose=False)
    pixels, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(pixels / 16).float(), torch.tensor(labels)
    train = DataLoader(TensorDataset(inputs[:1437], targets[:1437]), 64, shuffle=True)
    val = DataLoader(TensorDataset(inputs[1437:], targets[1437:]), 64)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    quiet |= {"enable_progress_bar": False}
    with mlflow.start_run(run_name="digits by a guarded Lightning"):
        arguments = from_lightning(Classifier(), train_dataloaders=train, val_dataloaders=val)
        handoff = track_range_test(**arguments)
        guard = handoff.guard(DARING)
        for attempt in guard:
            module = Classifier(lr=attempt.range.max)
            handoff.load_weights(module)
            watch = WatchAttempt(attempt)
            trainer = Trainer(max_epochs=8, callbacks=[watch], accelerator="cpu", **quiet)
            trainer.fit(module, train, val)
        handoff.track_training(attempt.range)
        mlflow.log_metric("accuracy", trainer.callback_metrics["val_accuracy"].item())
    return guard


if __name__ == "__main__":
    mlflow.set_experiment("digits")
    print(main().attempts)
