"""The ranks of this process: what rank 0 calls, all run; and an error of one ends all of them."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn

from lrrt_stage.errors import LRRTError, first_line
from lrrt_stage.settings import hide_passwords
from pipeline.ranks.options import RankOptions
from pipeline.ranks.share import Share

__all__ = ["Left", "Ranks", "current", "following", "on_all_ranks"]

FAILED, ENDED = "lrrt/failed", "lrrt/ended"
"""Keys of the ranks' store: why a rank has failed, and that rank 0 has ended."""
WATCH_SECONDS, GRACE_SECONDS, NOTICE_SECONDS = 0.5, 20.0, 3.0
"""How often a rank looks whether another one has failed; how long rank 0 may take to notice by
itself; and how long the reason of a connection that broke, or an answer to Ctrl-C, may take."""
ENDED_OUTSIDE = (
    "was ended from outside, for want of memory for example: start again, with fewer processes or "
    "smaller batches"
)
ASKED = ("Interrupted: another process does not answer\n", 130)
OF_CONNECTIONS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
"""What the errors of a connection between ranks say."""

Function = TypeVar("Function", bound=Callable[..., Any])


class Left(Exception):
    """Rank 0 has left a call that the other ranks are in."""


@dataclass
class Ranks:
    """The ranks that this process belongs to."""

    share: Share
    options: RankOptions
    store: Any
    """Torch's, by which they tell each other what is not computed."""
    ended_processes: Callable[[], list[int]] = list
    """Returns the ranks of the processes that this one has started and that have ended, killed ones
    first."""
    control: Any = field(default=None, init=False)
    """The group in which rank 0 tells the others what to do. It has no time limit: rank 0 may wait
    for a tracking store meanwhile."""
    is_calling: bool = field(default=False, init=False)
    """Whether rank 0 needs the others just now."""

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which runs the stages."""
        return self.share.rank == 0

    def broadcast(self, value: Any) -> Any:
        """Return the value of rank 0, on all ranks."""
        shared = [value]
        distributed.broadcast_object_list(shared, src=0, group=self.control)
        return shared[0]

    def require_equal(self, what: str, value: str) -> None:
        """Raise LRRTError on all ranks unless they have the same ``value``."""
        values = self.all_gather(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise LRRTError(
                    f"rank {rank} has other {what} than rank 0: give all ranks the same code, "
                    "options and data, and seed everything that is drawn"
                )

    @contextmanager
    def calling(
        self, function: Callable[..., Any], args: Sequence[Any], options: dict[str, Any]
    ) -> Iterator[None]:
        """Have the other ranks call a function, which rank 0 calls in the block."""
        self.is_calling = True
        try:
            self.broadcast((function, args, options))
            yield
        except (Exception, KeyboardInterrupt) as error:
            self.explain(error)
            raise
        finally:
            self.is_calling = False

    def explain(self, error: BaseException) -> None:
        """Raise what has happened on the other ranks, if an error of this one comes from that.

        A launcher asks this rank to end where another one has failed.
        """
        is_asked = isinstance(error, KeyboardInterrupt)
        if not is_asked and not _is_of_connection(error):
            return
        deadline = time.monotonic() + (0 if is_asked else NOTICE_SECONDS)
        while (failure := self.failure()) is None and not self.ended_processes():
            if time.monotonic() >= deadline:
                break
            time.sleep(0.05)
        if is_asked and (failure is None or failure["interrupted"]):
            return
        if failure is not None and failure["interrupted"]:
            raise KeyboardInterrupt(f"rank {failure['rank']} was stopped") from None
        raise LRRTError(self.reason(error)) from error

    def failure(self, store: Any = None) -> dict[str, Any] | None:
        """Return which rank has failed first, and why; None if none has."""
        store = store or self.store
        return json.loads(store.get(FAILED)) if store.check([FAILED]) else None

    def fail(self, error: BaseException, store: Any = None) -> None:
        """Tell the other ranks why this one ends, unless another one has told them before.

        That a connection broke is what follows from the end of another rank, which may tell more.
        """
        failed = {
            "rank": self.share.rank,
            "reason": hide_passwords(first_line(error)),
            "interrupted": isinstance(error, KeyboardInterrupt),
            "follows": _is_of_connection(error),
        }
        store = store or self.store
        with suppress(Exception):
            before = self.failure(store)
            if before is None or (before["follows"] and not failed["follows"]):
                store.set(FAILED, json.dumps(failed))

    def agree_on_buffers(self, model: nn.Module) -> None:
        """Have the buffers of rank 0, such as running statistics, on all ranks."""
        for buffer in model.buffers():
            distributed.broadcast(buffer, src=0)

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in their order."""
        values: list[Any] = [None] * self.share.size
        distributed.all_gather_object(values, value, group=self.control)
        return values

    def summed(self, values: Iterable[Any], device: torch.device) -> list[Tensor]:
        """Return numbers, each the sum of those of all ranks, on the device."""
        block = torch.stack(
            [torch.as_tensor(v, dtype=torch.float64, device=device) for v in values]
        )
        distributed.all_reduce(block)
        return list(block)

    def agree_on_randomness(self) -> None:
        """Have the random states of rank 0 on all ranks, so that they draw the same order."""
        python, numpy, cpu = self.broadcast(
            (random.getstate(), np.random.get_state(), torch.get_rng_state())  # noqa: NPY002
        )
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)

    def follow(self) -> None:
        """Call what rank 0 calls, until it has ended."""
        while (call := self.broadcast(None)) is not None:
            function, args, options = call
            with suppress(Left):
                function(*args, **options)

    def watch(self, until: threading.Event, was_asked: Callable[[], bool]) -> None:
        """End this process, from a thread, when another rank has failed, and nothing else does.

        So it ends when ``was_asked``, which waits a moment, says that it has got a signal to: the
        main thread may wait for a rank that does not answer.
        """
        since, is_asked = 0.0, False
        # Of its own, since the main thread may wait in the other one.
        store = self.store.clone() if hasattr(self.store, "clone") else self.store
        while not until.is_set():
            is_asked |= was_asked()
            try:
                has_failed, has_ended = store.check([FAILED]), store.check([ENDED])
            except Exception:  # the store has gone, and rank 0 with it
                has_failed, has_ended = False, True
            if self.is_first:
                is_stuck = has_failed or is_asked or bool(self.ended_processes())
                since = (since or time.monotonic()) if is_stuck and self.is_calling else 0.0
                seconds = time.monotonic() - since if since else 0.0
                if is_asked and seconds > NOTICE_SECONDS:
                    self.fail(KeyboardInterrupt(), store)  # they end, and with them the wait
                if seconds > GRACE_SECONDS:
                    _leave(*(ASKED if is_asked else (f"Error: {self.reason(store=store)}\n", 2)))
            elif is_asked:
                self.fail(KeyboardInterrupt(), store)
                _leave("", 130)
            # This rank may be about to end by itself.
            elif (has_failed or has_ended) and not until.wait(NOTICE_SECONDS):
                _leave("", 1)

    def reason(self, error: BaseException | None = None, store: Any = None) -> str:
        """Return what has happened on the other ranks, in a line; ``error`` is what shows here."""
        failure, ended = self.failure(store), self.ended_processes()
        told = f"on rank {failure['rank']}: {failure['reason']}" if failure else ""
        if failure and not failure["follows"]:
            return told
        if ended:
            return f"rank {ended[0]} {ENDED_OUTSIDE}"
        seen = told or ("no answer" if error is None else first_line(error))
        return f"{seen}; perhaps another rank {ENDED_OUTSIDE}"


_current: list[Ranks] = []


def current() -> Ranks | None:
    """Return the ranks that this process belongs to; None where it is alone."""
    return _current[-1] if _current else None


@contextmanager
def member_of(ranks: Ranks) -> Iterator[Ranks]:
    """Belong to ``ranks`` in the block."""
    _current.append(ranks)
    until = threading.Event()
    with _signals() as (was_asked, wake):
        watch = threading.Thread(target=ranks.watch, args=[until, was_asked], daemon=True)
        watch.start()
        try:
            yield ranks
        finally:
            _current.remove(ranks)
            until.set()
            wake()
            watch.join()  # torch does not bear a thread in its store while Python ends


@contextmanager
def _signals() -> Iterator[tuple[Callable[[], bool], Callable[[], Any]]]:
    """Yield a function by which a thread waits for a signal that asks this process to end.

    Python calls a handler only after the main thread has finished waiting for other ranks. The
    second function that is yielded ends a wait.
    """
    asking = {signal.SIGINT, signal.SIGTERM}
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.settimeout(WATCH_SECONDS)
        writer.setblocking(False)

        def was_asked() -> bool:
            with suppress(TimeoutError):
                # A byte is the number of a signal; there are others, as of a process that ended.
                return not asking.isdisjoint(reader.recv(1024))
            return False

        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield was_asked, lambda: writer.send(b"\0")
        finally:
            signal.set_wakeup_fd(before)


def on_all_ranks(function: Function) -> Function:
    """Have all ranks run ``function`` when rank 0 calls it, with the same arguments.

    Functions among the arguments, such as that for the progress, are called by rank 0 alone. Where
    this process is alone, or inside of such a call, it is called as usual.
    """

    @wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        ranks = current()
        if ranks is None or not ranks.is_first or ranks.is_calling:
            return function(*args, **options)
        told = [None if callable(each) else each for each in args]
        named = {name: None if callable(each) else each for name, each in options.items()}
        with ranks.calling(called, told, named):
            return function(*args, **options)

    return called  # type: ignore[return-value]


@contextmanager
def following() -> Iterator[None]:
    """Let rank 0 leave a call by an exception of this block, which the others do not run into.

    Raises
    ------
    Left
        On the other ranks, if it has.
    """
    ranks = current()
    if ranks is None:
        yield
    elif ranks.is_first:
        try:
            yield
        except Exception:
            ranks.broadcast(False)
            raise
        ranks.broadcast(True)
    else:
        yield
        if not ranks.broadcast(None):
            raise Left


def _is_of_connection(error: BaseException | None) -> bool:
    while error is not None:
        text = str(error)
        if isinstance(error, distributed.DistError) or (
            isinstance(error, RuntimeError) and any(word in text for word in OF_CONNECTIONS)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def _leave(line: str, code: int) -> NoReturn:
    """End this process at once: its main thread waits for a rank that has gone."""
    with suppress(OSError):
        sys.stdout.flush()
        os.write(2, line.encode())
    os._exit(code)
