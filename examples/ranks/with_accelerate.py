"""Accelerate's loop on several processes, and a tracked range test of what it has prepared.

torchrun --standalone --nproc-per-node 2 examples/ranks/with_accelerate.py
"""

import mlflow
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from digits import model, splits
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader

from mlflow_project import track_range_test

EPOCHS, BATCH = 3, 64

accelerator = Accelerator(cpu=not torch.cuda.is_available())
set_seed(0)
train, held_out = splits()
loader = DataLoader(train, BATCH // accelerator.num_processes, shuffle=True, drop_last=True)
network = model()
optimizer = SGD(network.parameters(), lr=0.1, momentum=0.9)
network, optimizer, loader = accelerator.prepare(network, optimizer, loader)
loss_fn = nn.CrossEntropyLoss()

if accelerator.is_main_process:
    mlflow.set_experiment("digits")
test = track_range_test(network, optimizer, loss_fn, loader, probe=held_out[:64])
scheduler = test.scheduler(optimizer, total_steps=EPOCHS * len(loader))
for _ in range(EPOCHS):
    for x, y in loader:
        loss = loss_fn(network(x), y)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step()
inputs, targets = (each.to(accelerator.device) for each in held_out.tensors)
accuracy = (network(inputs).argmax(1) == targets).float().mean().item()
accelerator.print(test, f"accuracy {accuracy:.4f}")
accelerator.end_training()
