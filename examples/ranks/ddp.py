"""A training loop on several processes, with DDP or FSDP2, and a tracked range test before it.

torchrun --standalone --nproc-per-node 2 examples/ranks/ddp.py
torchrun --standalone --nproc-per-node 2 examples/ranks/ddp.py fsdp
"""

import sys

import mlflow
import torch
from digits import model, splits
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from mlflow_project import track_range_test

EPOCHS, BATCH = 3, 64

distributed.init_process_group()
rank, size = distributed.get_rank(), distributed.get_world_size()
torch.manual_seed(0)  # the same initial weights on all ranks
train, held_out = splits()
sampler = DistributedSampler(train, drop_last=True)
loader = DataLoader(train, BATCH // size, sampler=sampler, drop_last=True)
share = fully_shard if sys.argv[1:] == ["fsdp"] else DistributedDataParallel
network = share(model())
optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
loss_fn = nn.CrossEntropyLoss()

# All ranks take part in the test; rank 0 alone talks to MLflow.
if rank == 0:
    mlflow.set_experiment("digits")
test = track_range_test(network, optimizer, loss_fn, loader, probe=held_out[:64])
scheduler = test.scheduler(optimizer, total_steps=EPOCHS * len(loader))
for epoch in range(EPOCHS):
    sampler.set_epoch(epoch)
    for x, y in loader:
        loss = loss_fn(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
inputs, targets = held_out.tensors
accuracy = (network(inputs).argmax(1) == targets).float().mean().item()
if rank == 0:
    print(test, f"accuracy {accuracy:.4f}")
distributed.destroy_process_group()
