"""The Wisconsin breast cancer data of scikit-learn: 569 tumours with 30 measurements each."""

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor

Split = tuple[Tensor, Tensor]


def load(val_share: float = 0.25) -> tuple[Split, Split]:
    """Return training and validation data: measurements ``[n, 30]``, and labels (1: malignant)."""
    measurements, benign = load_breast_cancer(return_X_y=True)
    train_x, val_x, train_y, val_y = train_test_split(
        measurements, 1 - benign, test_size=val_share, stratify=benign, random_state=0
    )
    # Scales differ from 0.1 to thousands; unscaled, no single learning rate fits all weights.
    scaler = StandardScaler().fit(train_x)
    train, val = (
        (torch.tensor(scaler.transform(x), dtype=torch.float32), torch.tensor(y))
        for x, y in ((train_x, train_y), (val_x, val_y))
    )
    return train, val
