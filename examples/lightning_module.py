"""Run the range test on a LightningModule, then train it with a one-cycle schedule in the range.

python examples/lightning_module.py
"""

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics import Accuracy

from lrrt_stage import LRRange, range_test, suggest
from lrrt_stage.adapters import from_lightning
from pipeline import build_schedule

EPOCHS = 10


class Digits(LightningDataModule):
    """scikit-learn's 8 × 8 digits, with a quarter held out for validation."""

    def setup(self, stage: str) -> None:
        """Split the data; always in the same way, since Lightning calls this for every fit."""
        images, labels = load_digits(return_X_y=True)
        data = TensorDataset(
            torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)
        )
        self.train_data, self.val_data = random_split(
            data, [0.75, 0.25], torch.Generator().manual_seed(0)
        )

    def train_dataloader(self) -> DataLoader:
        """Return the training batches."""
        return DataLoader(self.train_data, 64, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Return the validation batches."""
        return DataLoader(self.val_data, 64)


class Classifier(LightningModule):
    """A small convolutional network; once it has a range, it uses a one-cycle schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.lr_range: LRRange | None = None
        self.accuracy = Accuracy("multiclass", num_classes=10)
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        loss = cross_entropy(self.net(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        images, labels = batch
        self.accuracy(self.net(images), labels)
        self.log("val_accuracy", self.accuracy)

    def configure_optimizers(self):
        """Return SGD, and a schedule once there is a range."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        if self.lr_range is None:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = build_schedule("one-cycle", optimizer, self.lr_range, steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def main(**options) -> tuple[LRRange, float]:
    """Find a range and train in it; return the range and the accuracy on held-out digits.

    ``options`` are passed to Lightning's ``Trainer``.
    """
    seed_everything(0, verbose=False)
    module, data = Classifier(), Digits()
    # The range test restores the weights, so the training below starts from the tested ones.
    curve = range_test(**from_lightning(module, data))
    module.lr_range = suggest(curve)

    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=EPOCHS, devices=1, **quiet, **options)
    trainer.fit(module, data)
    return module.lr_range, trainer.callback_metrics["val_accuracy"].item()


if __name__ == "__main__":
    lr_range, accuracy = main()
    print(f"learning rates {lr_range}, validation accuracy {accuracy:.4f}")
