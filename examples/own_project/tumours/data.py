"""The Wisconsin breast cancer data that scikit-learn ships: 569 tumours, 30 measurements each."""

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor

Split = tuple[Tensor, Tensor]


def load(held_back: float = 0.25) -> tuple[Split, Split]:
    """Return training and validation data: measurements ``[n, 30]``, and 1 where malignant."""
    measurements, benign = load_breast_cancer(return_X_y=True)
    kept_x, held_x, kept_y, held_y = train_test_split(
        measurements, 1 - benign, test_size=held_back, stratify=benign, random_state=0
    )
    # Areas go to thousands, fractal dimensions to 0.1: without this no rate fits all weights.
    scaler = StandardScaler().fit(kept_x)
    train, val = (
        (torch.tensor(scaler.transform(x), dtype=torch.float32), torch.tensor(y))
        for x, y in ((kept_x, kept_y), (held_x, held_y))
    )
    return train, val
