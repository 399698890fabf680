"""Lightning on several processes: the range test when ``fit`` starts, and training with the result.

python examples/ranks/with_lightning.py 2
"""

import sys

import mlflow
import torch
from digits import model, splits
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader

from mlflow_project.callbacks.lightning import LRRangeTest

EPOCHS, BATCH = 3, 64


class Digits(LightningModule):
    """The network on the digits."""

    def __init__(self) -> None:
        super().__init__()
        self.network = model()

    def training_step(self, batch, _):
        """Return the loss of a batch."""
        inputs, targets = batch
        return nn.functional.cross_entropy(self.network(inputs), targets)

    def validation_step(self, batch, _):
        """Log the accuracy over all processes."""
        inputs, targets = batch
        accuracy = (self.network(inputs).argmax(1) == targets).float().mean()
        self.log("accuracy", accuracy, sync_dist=True)

    def configure_optimizers(self):
        """Return SGD with momentum; the range test sets its learning rate."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


if __name__ == "__main__":
    processes = int(sys.argv[1])
    seed_everything(0)
    train, held_out = splits()
    test = LRRangeTest(name="digits by Lightning")
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        strategy="ddp",
        devices=processes,
        callbacks=[test],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if trainer.is_global_zero:
        mlflow.set_experiment("digits")
    trainer.fit(
        Digits(),
        DataLoader(train, BATCH // processes, shuffle=True, drop_last=True),
        DataLoader(held_out, BATCH // processes),
    )
    if trainer.is_global_zero:
        print(test.handoff, f"accuracy {trainer.callback_metrics['accuracy']:.4f}")
