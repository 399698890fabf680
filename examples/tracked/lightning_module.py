"""A LightningModule whose fit begins with a tracked range test.

python -m examples.tracked.lightning_module
"""

import mlflow
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from mlflow_project.callbacks.lightning import LRRangeTest


class Classifier(LightningModule):
    """A small network with a cosine schedule."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss = cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        hits = self.net(batch[0]).argmax(1) == batch[1]
        self.log("val_accuracy", hits.float().mean())

    def configure_optimizers(self):
        """Return SGD, and a schedule over all steps."""
        optimizer = torch.optim.SGD(self.parameters(), self.hparams.lr, momentum=0.9)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def main() -> Trainer:
    """Train inside a run, which gets a child run with the range test."""
    seed_everything(0, verbose=False)
    pixels, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(pixels / 16).float(), torch.tensor(labels)
    train = DataLoader(TensorDataset(inputs[:1437], targets[:1437]), 64, shuffle=True)
    val = DataLoader(TensorDataset(inputs[1437:], targets[1437:]), 64)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(
        max_epochs=3,
        callbacks=[LRRangeTest()],
        enable_progress_bar=False,
        accelerator="cpu",
        **quiet,
    )
    with mlflow.start_run(run_name="digits by Lightning"):
        trainer.fit(Classifier(), train, val)
        mlflow.log_metric("accuracy", trainer.callback_metrics["val_accuracy"].item())
    return trainer


if __name__ == "__main__":
    mlflow.set_experiment("digits")
    print(main().callback_metrics)
