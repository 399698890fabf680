"""What the programs in this folder train: a network on the digits."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

TRAINING = 1437


def model() -> nn.Module:
    """Return a new network."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def splits() -> tuple[TensorDataset, TensorDataset]:
    """Return the examples to train with, and those that are held out."""
    pixels, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(pixels / 16).float(), torch.tensor(labels)
    train = TensorDataset(inputs[:TRAINING], targets[:TRAINING])
    return train, TensorDataset(inputs[TRAINING:], targets[TRAINING:])
