"""What a range test costs per step, restoring included, against a bare loop of the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from unittest.mock import patch

from benchmarks.performance.peers import PEERS, installed
from benchmarks.performance.problems import Problem, digits_problem, resnet_problem
from benchmarks.performance.rounds import Settings, interleaved
from benchmarks.performance.rows import Row, compared, unmeasured

__all__ = ["rows"]

WARM_UP = 10
"""Iterations: the fewest that a range test has."""
RHYTHM = 3
"""Iterations from one evaluation of the probe to the next, in a test of so few that all would be
evaluated. Of 100 by default, 35 are."""
MORE_ROUNDS = 4
"""Times as many of steps, whose targets are close to one."""
PER_STEP = "milliseconds per step, everything that is restored included"


def rows(
    settings: Settings,
    iterations: int = 100,
    loader_iterations: int = 50,
    resnet_iterations: int = 15,
    seconds: float = 180,
) -> Iterator[Row]:
    """Yield the rows of the built-in CNN on the digits, and of a ResNet-20."""
    share = seconds / 180
    device = settings.device
    problem = digits_problem(64, device)
    yield from _problem_rows(
        settings, "cnn, batch 64", problem, iterations, 50 * share, targets=(1.02, 1.25)
    )
    yield from _problem_rows(
        settings,
        "cnn, batch 16",
        digits_problem(16, device),
        iterations,
        25 * share,
        targets=(None, 1.35),
    )
    yield from _loader_rows(settings, problem, loader_iterations, 30 * share)
    yield from _problem_rows(
        settings,
        "resnet20, batch 128",
        resnet_problem(128, device),
        resnet_iterations,
        75 * share,
        targets=(1.02, 1.1),
        is_short=resnet_iterations < iterations,
    )


def _problem_rows(
    settings: Settings,
    name: str,
    problem: Problem,
    iterations: int,
    seconds: float,
    targets: tuple[float | None, float | None],
    is_short: bool = False,
) -> Iterator[Row]:
    """Yield the rows of a problem in memory, without and with a probe."""
    probe = problem.probe()
    probed = problem.tested(iterations, probe=probe)
    cases = {
        "bare": problem.bare(iterations),
        "range test": problem.tested(iterations),
        "with probe": partial(_in_rhythm, probed) if is_short else probed,
    }
    # A few steps are enough to warm up, and a whole round of slow ones would take too long.
    problem.bare(WARM_UP)()
    problem.tested(WARM_UP, probe=probe)()
    timings = interleaved(cases, settings, seconds, rounds=MORE_ROUNDS, warm_up=False)
    loop = f"over {iterations} iterations; baseline: a bare loop of the same batches in memory"
    for case, what, target in (
        ("range test", f"{PER_STEP}, {loop}", targets[0]),
        ("with probe", f"{PER_STEP}, with a probe of {len(probe[1])}, {loop}", targets[1]),
    ):
        yield compared(
            f"step: {name}, {case}",
            what,
            timings[case],
            timings["bare"],
            target=target,
            per=iterations,
            unit="ms",
            scale=1e3,
        )


def _in_rhythm(test: Callable[[], None]) -> None:
    """Run a short range test that evaluates the probe about as often per step as a long one."""
    name = "lrrt_stage.measure.ramp_loop.probe_iterations"
    with patch(name, lambda _, iterations, *others: {*range(0, iterations, RHYTHM)}):
        test()


def _loader_rows(
    settings: Settings, problem: Problem, iterations: int, seconds: float
) -> Iterator[Row]:
    """Yield the rows of a ``DataLoader``: ours, and those of other learning-rate finders."""
    loader = problem.loader
    cases = {
        "bare": problem.bare(iterations, loader),
        "range test": problem.tested(iterations, loader),
    }
    peers = [name for name in PEERS if installed(name)]
    for name in peers:
        cases[name] = PEERS[name].finder(problem, loader, iterations, settings.folder)
    timings = interleaved(cases, settings, seconds)
    loop = f"over {iterations} iterations; baseline: a bare loop of the same DataLoader"
    for case in ("range test", *PEERS):
        name = f"step: cnn, batch 64, DataLoader, {case}"
        if case in cases:
            what = f"{PER_STEP}, {loop}"
            if case in PEERS:
                what = f"milliseconds per step of {PEERS[case].called}, {loop}"
            yield compared(
                name,
                what,
                timings[case],
                timings["bare"],
                per=iterations,
                unit="ms",
                scale=1e3,
            )
        else:
            yield unmeasured(name, f"{PEERS[case].called}, {loop}", "not installed", unit="ms")
