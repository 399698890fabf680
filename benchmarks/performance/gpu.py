"""What a range test costs on a CUDA device: how often the host waits, and the time of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from benchmarks.performance.problems import Problem, digits_problem, resnet_problem
from benchmarks.performance.rounds import Settings, interleaved, reason_of
from benchmarks.performance.rows import Row, compared, unmeasured

__all__ = ["host_reads", "rows"]

READS = ("aten::_local_scalar_dense", "cudaStreamSynchronize", "cudaDeviceSynchronize")
"""Events with which the host waits for the device."""
COPY = "Memcpy DtoH"
NAMES = (
    "gpu: host reads",
    "gpu: step, eager",
    "gpu: step, bf16",
    "gpu: step, channels last",
    "gpu: step, compiled",
    "gpu: step, against a CUDA graph",
)


def rows(settings: Settings, iterations: int = 100, seconds: float = 90) -> Iterator[Row]:
    """Yield the rows of a CUDA device; without one, they say so."""
    if settings.device.type != "cuda":
        for name in NAMES:
            available = torch.cuda.is_available()
            reason = "a CUDA device was not chosen" if available else "no CUDA device"
            yield unmeasured(name, "a range test on a CUDA device", reason, unit=_unit(name))
        return
    yield _reads(settings, iterations)
    share = seconds / 5
    eager = resnet_problem(128, settings.device)
    yield _step("eager", eager, {}, {}, settings, iterations, share)
    half = {"autocast": torch.bfloat16}
    yield _step("bf16", eager, half, {"precision": "bf16"}, settings, iterations, share)
    last = resnet_problem(128, settings.device)
    last.model.to(memory_format=torch.channels_last)
    last.inputs = last.inputs.to(memory_format=torch.channels_last)
    yield _step("channels last", last, {}, {"channels_last": True}, settings, iterations, share)
    compiled = resnet_problem(128, settings.device)
    compiled.model = torch.compile(compiled.model)  # type: ignore[assignment]
    yield _step("compiled", compiled, {}, {}, settings, iterations, share)
    yield _graph(settings, iterations, share)


def _unit(name: str) -> str:
    return "reads" if name == NAMES[0] else "ms"


def _step(
    name: str,
    problem: Problem,
    bare_options: dict[str, Any],
    options: dict[str, Any],
    settings: Settings,
    iterations: int,
    seconds: float,
) -> Row:
    cases = {
        "bare": problem.bare(iterations, **bare_options),
        "range test": problem.tested(iterations, **options),
    }
    timings = interleaved(cases, settings, seconds)
    return compared(
        f"gpu: step, {name}",
        f"milliseconds per step of a ResNet-20 at batch 128, {name}, restoring included; baseline: "
        "a bare loop of the same batches",
        timings["range test"],
        timings["bare"],
        target=1.02,
        per=iterations,
        unit="ms",
        scale=1e3,
    )


def _reads(settings: Settings, iterations: int) -> Row:
    name, unit = NAMES[0], _unit(NAMES[0])
    what = (
        f"times that the host waits for the device in {iterations} steps of a range test; "
        "baseline: in a bare loop, which reads its losses at the end"
    )
    problem = digits_problem(64, settings.device)
    try:
        tested = host_reads(problem.tested(iterations))
        bare = host_reads(problem.bare(iterations))
    except Exception as error:
        return Row(name, what, unit=unit, error=reason_of(error))
    counts = {"range test": tested, "bare": bare}
    measured, baseline = (float(max(each.values(), default=0)) for each in counts.values())
    ratio = measured / baseline if baseline else None
    return Row(name, what, measured, baseline, unit=unit, rounds=1, listing=counts, ratio=ratio)


def host_reads(run: Callable[[], Any]) -> dict[str, int]:
    """Return how often each event occurred with which the host waits for the device."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    run()
    with profile(activities=activities) as profiled:
        run()
    counts: dict[str, int] = {}
    for event in profiled.key_averages():
        if event.key in READS or event.key.startswith(COPY):
            counts[event.key] = counts.get(event.key, 0) + event.count
    return counts


def _graph(settings: Settings, iterations: int, seconds: float) -> Row:
    problem = resnet_problem(128, settings.device)
    tested, graphed = problem.tested(iterations), partial(_replayed, problem, iterations)
    timings = interleaved({"graph": graphed, "range test": tested}, settings, seconds)
    return compared(
        NAMES[-1],
        "milliseconds per step of a ResNet-20 at batch 128; baseline: a bare loop whose step was "
        "captured in a CUDA graph, capture included",
        timings["range test"],
        timings["graph"],
        per=iterations,
        unit="ms",
        scale=1e3,
    )


def _replayed(problem: Problem, iterations: int) -> None:
    """Take steps by a graph, with the learning rate and the batch in memory that it reads."""
    lr = torch.tensor(1e-7, device=problem.device)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=lr, momentum=0.9)
    source = [*problem.batches]
    inputs, targets = (part.clone() for part in source[0])

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(problem.model(inputs), targets)
        loss.backward()
        optimizer.step()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    losses = []
    for number in range(iterations):
        new_inputs, new_targets = source[number % len(source)]
        inputs.copy_(new_inputs)
        targets.copy_(new_targets)
        lr.mul_(1e4 ** (1 / iterations))
        graph.replay()
        losses.append(loss.detach().clone())
    torch.stack(losses).tolist()
