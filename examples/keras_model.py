"""Use a Keras 3 model in the range test and in the pipeline; on the torch backend it is a module.

Run as a script, this file calls the range test as a library function on an ordinary Keras model:

    python examples/keras_model.py

The function ``build`` is a model factory for a task. ``--init own`` keeps the weights Keras draws:

    lrrt-stage lrrt --model examples.keras_model:build --init own
    lrrt-stage train --model examples.keras_model:build
"""

import os

os.environ["KERAS_BACKEND"] = "torch"

import keras
import torch
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lrrt_stage import LRRange, range_test, suggest
from pipeline import build_schedule

EPOCHS = 10


def network(width: int = 16, dropout: float = 0.3) -> keras.Model:
    """Return a classifier from 8 × 8 images in Keras's channels-last layout to 10 logits."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(width, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Conv2D(2 * width, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dropout(dropout),
            layers.Dense(10),
        ]
    )


class TorchStyle(nn.Module):
    """A Keras image model with the call signature and the modes of a torch module."""

    def __init__(self, net: keras.Model) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images ``[N, C, H, W]``, in the mode of ``train()``/``eval()``."""
        # Keras computes on its default device, regardless of where weights and inputs are.
        with keras.device(str(images.device)):
            # Keras ignores torch's modes: without `training`, it runs in inference mode.
            return self.net(images.permute(0, 2, 3, 1), training=self.training)


def build(width: int = 16, dropout: float = 0.3) -> nn.Module:
    """Return a network whose initial weights depend only on the random state."""
    # Keras numbers layers in the names of weights; clearing makes the names equal in every process.
    keras.utils.clear_session()
    # On the CPU, so that the initial weights do not depend on the device.
    with keras.device("cpu"):
        return TorchStyle(network(width, dropout))


def main() -> tuple[LRRange, float]:
    """Find a range and train in it; return the range and the accuracy on held-out images."""
    # This also seeds Python's random state, from which Keras draws the seeds of initial weights.
    keras.utils.set_random_seed(0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    # Keras puts the weights on its default device.
    device = next(model.parameters()).device
    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images / 16, dtype=torch.float32, device=device).reshape(-1, 8, 8, 1)
    train, val = train_test_split(range(len(labels)), stratify=labels, random_state=0)
    targets = torch.tensor(labels, device=device)
    batches = DataLoader(TensorDataset(inputs[train], targets[train]), 64, shuffle=True)

    def batch_loss(batch: list[Tensor]) -> Tensor:
        x, y = batch
        return cross_entropy(model(x, training=True), y)

    curve = range_test(model, optimizer, None, batches, batch_loss=batch_loss)
    lr_range = suggest(curve)

    schedule = build_schedule("one-cycle", optimizer, lr_range, EPOCHS * len(batches))
    for _ in range(EPOCHS):
        for batch in batches:
            optimizer.zero_grad()
            batch_loss(batch).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        predicted = model(inputs[val]).argmax(dim=1)
    return lr_range, (predicted == targets[val]).float().mean().item()


if __name__ == "__main__":
    lr_range, accuracy = main()
    print(f"learning rates {lr_range}, validation accuracy {accuracy:.4f}")
