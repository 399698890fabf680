"""A regression: disease progression from ten measurements, with two groups of parameters.

lrrt-stage main --setup examples.setups.regression:setup --refine true --metric r2
"""

import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import R2Score

from pipeline import Setup


def setup(width: int = 64, batch_size: int = 32) -> Setup:
    """Return a network whose last layer learns ten times as fast as the first."""
    measured, progression = load_diabetes(return_X_y=True, scaled=False)
    table = torch.tensor(measured), torch.tensor(progression)[:, None]
    inputs, targets = (((part - part.mean(0)) / part.std(0)).float() for part in table)
    model = nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, 1))
    groups = [
        {"params": model[0].parameters(), "lr": 1e-3},
        {"params": model[2].parameters(), "lr": 1e-2},
    ]
    return Setup(
        model=model,
        optimizer=torch.optim.RMSprop(groups),
        train_batches=DataLoader(TensorDataset(inputs[:352], targets[:352]), batch_size, True),
        val_batches=DataLoader(TensorDataset(inputs[352:], targets[352:]), 90),
        loss_fn=nn.HuberLoss(),
        metrics={"r2": R2Score()},
    )
