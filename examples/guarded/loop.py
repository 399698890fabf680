"""A training loop that starts again with lower learning rates if it is being ruined.

python examples/guarded/loop.py
"""

import mlflow
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lrrt_stage import LRRange
from mlflow_project import track_range_test

EPOCHS = 8
DARING = LRRange(0.2, 2.0)
"""Far above what the range test suggests, so that the first attempt is lost."""

torch.manual_seed(0)
pixels, labels = load_digits(return_X_y=True)
inputs, targets = torch.tensor(pixels / 16).float(), torch.tensor(labels)
loader = DataLoader(TensorDataset(inputs[:1437], targets[:1437]), 64, shuffle=True)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
loss_fn = nn.CrossEntropyLoss()

mlflow.set_experiment("digits")
with mlflow.start_run(run_name="digits by a guarded loop"):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    probe = inputs[1437:1501], targets[1437:1501]
    test = track_range_test(model, optimizer, loss_fn, loader, probe=probe)
    for attempt in test.guard(DARING):
        test.load_weights(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = test.scheduler(optimizer, EPOCHS * len(loader), lr_range=attempt.range)
        batches = (batch for _ in range(EPOCHS) for batch in loader)
        for x, y in batches:
            lr = scheduler.get_last_lr()[0]
            loss = loss_fn(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            if attempt.watch(loss, lr):
                print(attempt)
                break
    test.track_training(attempt.range)
    accuracy = (model(inputs[1437:]).argmax(1) == targets[1437:]).float().mean().item()
    mlflow.log_metrics({"accuracy": accuracy, "attempts": attempt.number})
print(attempt, f"accuracy {accuracy:.4f}")
