"""The trained model as an archive."""

import torch
from torch import nn

from mlflow_project.tracking.logged_model import _exports


def test_any_number_of_models_is_exported_in_one_process():
    for _ in range(10):
        model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).eval()
        assert _exports(model, torch.zeros(2, 2))
