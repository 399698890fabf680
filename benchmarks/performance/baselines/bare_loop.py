"""The least that a range test has to do, written without the project: a loop over batches."""

from __future__ import annotations

from itertools import chain, islice, repeat

import torch
from torch.nn.functional import cross_entropy


class Shuffled:
    """Batches of tensors, in a new order at every iteration; a last one that is short is left out.

    The range test and the bare loop read the same ones.
    """

    def __init__(self, inputs, targets, batch_size):
        self.inputs, self.targets, self.batch_size = inputs, targets, batch_size

    def __len__(self):
        return len(self.targets) // self.batch_size

    def __iter__(self):
        order = torch.randperm(len(self.targets)).to(self.targets.device)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            places = order[start : start + self.batch_size]
            yield self.inputs[places], self.targets[places]


def bare_loop(model, optimizer, batches, iterations, device, autocast=None):
    """Train while the learning rate grows, and return the losses.

    With a data type for ``autocast``, the loss is computed under it.
    """
    model.train()
    lr, factor, losses = 1e-7, 1e4 ** (1 / iterations), []
    for inputs, targets in islice(chain.from_iterable(repeat(batches)), iterations):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        inputs, targets = inputs.to(device), targets.to(device)
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            loss = cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        lr *= factor
    # A range test restores the gradients that it finds, and keeps their memory until then.
    optimizer.zero_grad()
    return torch.stack(losses).tolist()
