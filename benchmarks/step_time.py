"""What a range test costs per step, against a bare training loop over the same batches.

The cases take turns in one process, so that a busy machine slows all of them down equally; their
medians over several rounds are compared. Run it with ``make bench``.
"""

from __future__ import annotations

import time
from functools import partial
from itertools import chain, islice, repeat
from statistics import median

import click
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lrrt_stage import range_test, resolve_device, seeded
from pipeline.data.batches import Batches
from pipeline.data.splits import Data
from pipeline.models.networks import build_model


def bare_loop(model, optimizer, batches, iterations, device):
    """Train at a growing learning rate: the least that a range test has to do."""
    model.train()
    lr = 1e-7
    for x, y in islice(chain.from_iterable(repeat(batches)), iterations):
        optimizer.param_groups[0]["lr"] = lr = lr * 1.1
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model(x.to(device)), y.to(device)).backward()
        optimizer.step()
    # A range test restores the gradients that it finds, and keeps their memory until then.
    optimizer.zero_grad(set_to_none=True)


def timed(function, device):
    """Return the seconds that ``function`` takes, including the work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def cases(model_name, batch_size, device):
    with seeded(0):
        x, y = torch.randn(4096, 3, 32, 32), torch.randint(0, 10, (4096,))
        model = build_model(model_name, {}, (3, 32, 32), 10).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(TensorDataset(x, y), batch_size, shuffle=True, drop_last=True)
    tensors = Batches(Data((x, y), (x, y), 10), batch_size, device, train=True)

    def tested(batches, iterations):
        range_test(
            model, optimizer, cross_entropy, batches,
            iterations=iterations, lr_end=1e-3, stop_multiple=None,
        )  # fmt: skip

    return {
        "bare loop, DataLoader": lambda n: bare_loop(model, optimizer, loader, n, device),
        "range test, DataLoader": lambda n: tested(loader, n),
        "range test, tensors": lambda n: tested(tensors, n),
    }


@click.command()
@click.option("--device", default="auto")
@click.option("--rounds", default=7)
@click.option("--threads", default=2)
def main(device, rounds, threads):
    torch.set_num_threads(threads)
    device = resolve_device(device)
    print(f"device {device}, {threads} threads, medians of {rounds} interleaved rounds")
    for model_name, batch_size, iterations in (("cnn", 64, 40), ("resnet20", 64, 20)):
        runs = cases(model_name, batch_size, device)
        seconds = {name: [] for name in runs}
        for number in range(rounds + 1):
            for name, run in runs.items():
                taken = timed(partial(run, iterations), device)
                if number > 0:  # the first round warms up
                    seconds[name].append(taken / iterations)
        base = median(seconds["bare loop, DataLoader"])
        for name, values in seconds.items():
            print(
                f"{model_name:9} batch {batch_size}  {name:23} "
                f"{1e3 * median(values):8.2f} ms/step   x{median(values) / base:.2f}"
            )


if __name__ == "__main__":
    main()
