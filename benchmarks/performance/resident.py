"""Takes steps with a large model, and prints as JSON how much memory the process needed.

It is a process of its own: ``python -m benchmarks.performance.resident CASE OPTIMIZER DEVICE``.
"""

from __future__ import annotations

import json
import resource
import sys
from itertools import chain, pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.performance.baselines.bare_loop import Shuffled, bare_loop
from lrrt_stage import range_test

__all__ = ["main"]

BATCH, STEPS = 8, 10
WIDTHS = (1024, 4096, 4096, 4096, 3000)
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
}


def large_model(widths: tuple[int, ...] = WIDTHS) -> nn.Module:
    """Return a network of 50 million parameters."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def main(case: str, optimizer_name: str, device_name: str) -> None:
    """Print the bytes at the peak, and those of the parameters, buffers and optimizer state."""
    device = torch.device(device_name)
    torch.manual_seed(0)
    model = large_model().to(device)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    inputs, targets = torch.randn(16 * BATCH, WIDTHS[0]), torch.randint(0, 10, (16 * BATCH,))
    batches = Shuffled(inputs.to(device), targets.to(device), BATCH)
    # One step in all cases, so that the optimizer has its state.
    bare_loop(model, optimizer, batches, 1, device)
    if case == "bare":
        bare_loop(model, optimizer, batches, STEPS, device)
    else:
        range_test(
            model,
            optimizer,
            cross_entropy,
            batches,
            iterations=STEPS,
            lr_end=1e-3,
            stop_multiple=None,
            probe=next(iter(batches)) if case == "probe" else None,
        )
    state = (value for values in optimizer.state.values() for value in values.values())
    held = [
        each
        for each in chain(model.parameters(), model.buffers(), state)
        if isinstance(each, Tensor)
    ]
    copy = sum(each.numel() * each.element_size() for each in held)
    print(json.dumps({"peak": _peak(device), "copy": copy}))


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # In kilobytes, but on macOS, where it is in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main(*sys.argv[1:])
