"""A training loop with its own MLflow run, and a tracked range test as its child run.

python examples/tracked/loop.py
"""

import mlflow
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mlflow_project import track_range_test

EPOCHS = 3

torch.manual_seed(0)
pixels, labels = load_digits(return_X_y=True)
inputs, targets = torch.tensor(pixels / 16).float(), torch.tensor(labels)
loader = DataLoader(TensorDataset(inputs[:1437], targets[:1437]), 64, shuffle=True)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
loss_fn = nn.CrossEntropyLoss()

mlflow.set_experiment("digits")
with mlflow.start_run(run_name="digits by a loop"):
    probe = inputs[1437:1501], targets[1437:1501]
    test = track_range_test(model, optimizer, loss_fn, loader, probe=probe)
    test.track_training()
    scheduler = test.scheduler(optimizer, total_steps=EPOCHS * len(loader))
    for epoch in range(EPOCHS):
        for x, y in loader:
            loss = loss_fn(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        accuracy = (model(inputs[1437:]).argmax(1) == targets[1437:]).float().mean().item()
        mlflow.log_metrics({"loss": loss.item(), "accuracy": accuracy}, step=epoch)
print(test, f"accuracy {accuracy:.4f}")
