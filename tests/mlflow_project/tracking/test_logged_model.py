"""The trained model as an archive."""

import torch
from torch import nn

from mlflow_project.tracking.logged_model import _exports


def test_any_number_of_models_is_exported_in_one_process():
    models = [nn.Sequential(nn.Linear(2, 1)) for _ in range(10)]
    assert all(_exports(model, torch.zeros(2, 2)) for model in models)
