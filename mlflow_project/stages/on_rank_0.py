"""A tracked range test on several ranks of a program: one publishes, and all get the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

from torch import distributed

from lrrt_stage import LRCurve, LRRTError, NoSuggestion
from lrrt_stage.errors import first_line
from lrrt_stage.state import weights
from mlflow_project.handoff.handoff import Handoff

__all__ = ["Progress", "on_rank_0", "require_equal_weights"]

Progress = Callable[[int, int], None]
PUBLISHING = timedelta(days=1)
"""How long rank 0 may take to publish, as it waits for a tracking store that does not answer."""
FAILING = timedelta(seconds=20)
"""How far apart two ranks may fail alike. One that fails alone ends then, and with it the others,
which wait for it."""


def require_equal_weights(state: weights.State) -> None:
    """Raise LRRTError on all ranks unless all of them begin with the same weights."""
    digests: list[Any] = [None] * distributed.get_world_size()
    with _group() as group:
        distributed.all_gather_object(digests, weights.digest(state), group=group)
    for rank, digest in enumerate(digests):
        if digest != digests[0]:
            raise LRRTError(
                f"rank {rank} has other initial weights than rank 0: seed all ranks alike before "
                "the model is made, or wrap it in DistributedDataParallel first"
            )


def on_rank_0(
    tracked: Callable[[Callable[[Progress], LRCurve]], Handoff],
    run_test: Callable[..., LRCurve],
    state: weights.State,
) -> Handoff:
    """Publish on rank 0 while the other ranks take part in the test; return its hand-off.

    ``state`` becomes the weights of the hand-off on the other ranks: rank 0 does not send its own.
    """
    with _group(PUBLISHING) as published, _group(FAILING) as failed:
        return _on_rank_0(tracked, run_test, state, published, failed)


def _on_rank_0(
    tracked: Callable[[Callable[[Progress], LRCurve]], Handoff],
    run_test: Callable[..., LRCurve],
    state: weights.State,
    published: Any,
    failed: Any,
) -> Handoff:
    if distributed.get_rank() > 0:
        _shared(None, published)  # before the test, which rank 0 may not reach
        try:
            run_test()
        except Exception:
            with suppress(RuntimeError, LRRTError):
                _shared(None, failed)
            raise
        return replace(_shared(None, published), weights=state)
    group = published

    def begin(progress: Progress) -> LRCurve:
        nonlocal group
        _shared(None, published)
        try:
            return run_test(progress)
        except Exception:
            group = failed
            raise

    try:
        handoff = tracked(begin)
    except Exception as error:  # told to the other ranks, which would wait
        line = f"on rank 0: {first_line(error)}"
        told = LRRTError(line)
        if isinstance(error, NoSuggestion):
            told = NoSuggestion(line, error.verdict)
        with suppress(Exception):
            _shared(told, group)
        raise
    _shared(replace(handoff, weights={}), published)
    return handoff


@contextmanager
def _group(timeout: timedelta | None = None) -> Iterator[Any]:
    """Have a group of all ranks on CPUs in the block; by default with torch's own patience."""
    group = distributed.new_group(backend="gloo", timeout=timeout)
    try:
        yield group
    finally:
        distributed.destroy_process_group(group)


def _shared(value: Any, group: Any) -> Any:
    """Return the value of rank 0; raise it if it is an error."""
    shared = [value]
    distributed.broadcast_object_list(shared, src=0, group=group)
    if isinstance(shared[0], Exception) and distributed.get_rank() > 0:
        raise shared[0]
    return shared[0]
