"""How ranks start, find each other, and end."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import distributed

import lrrt_stage
from lrrt_stage.errors import LRRTError, excerpt
from lrrt_stage.settings import hide_passwords, require
from pipeline.ranks.group import ENDED, NOTICE_SECONDS, WATCH_SECONDS, Ranks, member_of
from pipeline.ranks.options import RankOptions, launched_rank, launched_size
from pipeline.ranks.share import Share

__all__ = ["dismiss", "follow", "ranks_of"]

FOLDER = "LRRT_RANKS"
"""Environment variable with the folder by which the processes of one machine find each other."""
FIRST = "LRRT_RANK_0"
"""Environment variable with the process that has started this one."""
START_SECONDS = 600
"""How long ranks may differ in their start: one of them may be on a machine that reads slowly."""
ENDING_SECONDS = 10
"""How long the other ranks have to end by themselves."""
PATIENCE = timedelta(days=365)
HELLO, GO = "lrrt/hello/{}", "lrrt/go"


@contextmanager
def ranks_of(
    options: RankOptions, arguments: Sequence[str], device: str = "auto"
) -> Iterator[Ranks | None]:
    """Run the block as rank 0 of so many processes, or of those that a launcher has started.

    ``arguments`` are those of the command, which have to be the same on all ranks, and ``device``
    is that of its tasks.

    Raises
    ------
    LRRTError
        If there are not as many devices; if a process does not start, or runs other code or has
        other options than this one.
    """
    size = launched_size()
    if size == 1 and options.processes == 1:
        yield None
        return
    require(
        size == 1 or options.processes in (1, size),
        f"processes={options.processes}, but the launcher has started {size}: leave it out",
    )
    on_gpus = torch.cuda.is_available() and device.startswith(("auto", "cuda"))
    if size == 1:
        _require_devices(options.processes, on_gpus)
    options = replace(options, processes=max(size, options.processes))
    # A launcher ends those that it has started.
    with _followers(options, arguments) if size == 1 else nullcontext(list) as ended:
        store = _store(0, options.processes)
        ranks = Ranks(Share(0, options.processes), options, store, ended)
        try:
            _greet(store, 0, arguments)
            _compare(store, options.processes, ended)
            store.set(GO, json.dumps([asdict(options), on_gpus]))
            with _connected(ranks, on_gpus):
                try:
                    yield ranks
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt):
                        ranks.explain(error)
                    ranks.fail(error)  # before the connections break, for which it is the reason
                    raise
                with suppress(RuntimeError):  # all is done, whatever has become of the others
                    ranks.broadcast(None)
        except RuntimeError as error:  # while they connect
            ranks.explain(error)
            raise
        finally:
            with suppress(Exception):
                store.set(ENDED, "")


def follow(arguments: Sequence[str]) -> NoReturn:
    """Do what rank 0 does, as one of the other ranks, and exit.

    Nothing is printed: an error is told to rank 0.
    """
    rank, size = launched_rank(), launched_size()
    warnings.simplefilter("ignore")  # rank 0 shows them
    if FOLDER in os.environ:
        threading.Thread(target=_end_with_rank_0, daemon=True).start()
    store = _store(rank, size)
    _greet(store, rank, arguments)
    deadline = time.monotonic() + START_SECONDS
    try:
        while not store.check([GO]):
            if store.check([ENDED]) or time.monotonic() > deadline:
                os._exit(int(not store.check([ENDED])))
            time.sleep(0.05)
        given, on_gpus = json.loads(store.get(GO))
    except RuntimeError:  # the store has gone, and rank 0 with it
        os._exit(1)
    ranks = Ranks(Share(rank, size), RankOptions(**given), store)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: None)  # the thread of the ranks does what is asked
    try:
        with _connected(ranks, on_gpus):
            ranks.follow()
    except BaseException as error:
        ranks.fail(error)
        if FOLDER in os.environ:
            _end_with_rank_0(NOTICE_SECONDS)
        os._exit(1)  # at once: what it holds may wait for ranks that have gone
    sys.exit(0)


def dismiss() -> None:
    """Let the other ranks of a launcher end, where the command needed none."""
    store = _store(0, launched_size())
    if not store.check([GO]):
        store.set(ENDED, "")


def _require_devices(processes: int, on_gpus: bool) -> None:
    count = torch.cuda.device_count() if on_gpus else len(_cores())
    kind = "GPUs" if on_gpus else "cores"
    require(
        processes <= count,
        f"processes={processes} is more than the {count} {kind} of this machine: use {count} or "
        "fewer, or torchrun on several machines",
    )


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return [*os.sched_getaffinity(0)]
    return [*range(os.cpu_count() or 1)]


@contextmanager
def _followers(options: RankOptions, arguments: Sequence[str]) -> Iterator[Callable[[], list[int]]]:
    """Start the other processes on this machine, and end them with the block."""
    folder = tempfile.mkdtemp(prefix="lrrt-ranks-")
    threads, size = max(1, torch.get_num_threads() // options.processes), options.processes
    of_all = {
        FOLDER: folder,
        FIRST: str(os.getpid()),
        "WORLD_SIZE": str(size),
        # They find each other by a file, and not at an address.
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "0",
        "OMP_NUM_THREADS": str(threads),
        # Where a module of the user's is found here, it is there.
        "PYTHONPATH": os.pathsep.join(each or os.getcwd() for each in sys.path),
    }
    before = torch.get_num_threads()
    processes: list[subprocess.Popen] = []
    os.environ[FOLDER] = folder
    torch.set_num_threads(threads)
    try:
        for rank in range(1, size):
            with open(Path(folder, f"{rank}.log"), "w") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "pipeline.ranks", *arguments],
                        env={**os.environ, **of_all, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=log,
                        # Ctrl-C is for rank 0, which ends the others.
                        start_new_session=True,
                    )
                )
        yield partial(_ended, processes)
    finally:
        deadline = time.monotonic() + (0 if sys.exc_info()[0] else ENDING_SECONDS)
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.wait()
        torch.set_num_threads(before)
        del os.environ[FOLDER]
        shutil.rmtree(folder, ignore_errors=True)


def _ended(processes: Sequence[subprocess.Popen]) -> list[int]:
    ended = [rank for rank, each in enumerate(processes, start=1) if each.poll() is not None]
    # Those that were killed have a negative code. Others have ended since their connection broke.
    return sorted(ended, key=lambda rank: processes[rank - 1].returncode >= 0)


def _store(rank: int, size: int) -> Any:
    """Return the store by which ranks tell each other what is not computed."""
    if folder := os.environ.get(FOLDER):
        return distributed.FileStore(str(Path(folder, "store")), size)  # type: ignore[attr-defined]
    store, *_ = next(distributed.rendezvous("env://", rank, size))  # type: ignore[attr-defined]
    return store


def _greet(store: Any, rank: int, arguments: Sequence[str]) -> None:
    """Tell the other ranks what this one runs."""
    found = {
        "options": hide_passwords(" ".join(arguments)),
        "code": _code(),
        "version of torch": torch.__version__,
        "version of Python": platform.python_version(),
    }
    store.set(HELLO.format(rank), json.dumps(found))


def _code() -> str:
    """Return a digest of the sources of these packages."""
    sha = hashlib.sha256()
    folders = [Path(__file__).parents[1], Path(lrrt_stage.__file__).parent]
    for path in (path for folder in folders for path in sorted(folder.rglob("*.py"))):
        sha.update(path.read_bytes())
    return sha.hexdigest()


def _compare(store: Any, size: int, ended: Callable[[], list[int]]) -> None:
    """Wait until all ranks are there; raise LRRTError unless they run the same."""
    deadline = time.monotonic() + START_SECONDS
    own = json.loads(store.get(HELLO.format(0)))
    for rank in range(1, size):
        while not store.check([HELLO.format(rank)]):
            if rank in ended():
                log = Path(os.environ[FOLDER], f"{rank}.log").read_text(errors="replace")
                last = excerpt((log.strip() or "without a word").splitlines()[-1])
                raise LRRTError(f"process {rank} could not start ({last}): use fewer processes")
            require(
                time.monotonic() < deadline,
                f"rank {rank} of {size} has not started within {START_SECONDS} s: look into its "
                "output, and start all ranks with one address",
            )
            time.sleep(0.02)
        for what, other in json.loads(store.get(HELLO.format(rank))).items():
            shown = f" {other!r}, not {own[what]!r}" if what != "code" else ""
            require(
                other == own[what],
                f"rank {rank} has other {what}{shown}: start all ranks with the same command and "
                "the same installation",
            )


@contextmanager
def _connected(ranks: Ranks, on_gpus: bool) -> Iterator[None]:
    """Be one of the ranks in the block."""
    share = ranks.share
    with _loopback(), member_of(ranks):
        ranks.is_calling = True  # until all are there, one that fails would be waited for
        if on_gpus:
            # A launcher may show each process its own GPU alone.
            place, count = int(os.environ.get("LOCAL_RANK", share.rank)), torch.cuda.device_count()
            require(
                count == 1 or place < count,
                f"this machine has {count} GPUs, and rank {share.rank} is its process {place + 1}: "
                "start one process for each, or give device=cpu",
            )
            torch.cuda.set_device(place % count)
        backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
        distributed.init_process_group(
            backend, store=ranks.store, rank=share.rank, world_size=share.size
        )
        try:
            ranks.control = distributed.new_group(backend="gloo", timeout=PATIENCE)
            ranks.is_calling = False
            yield
        finally:
            distributed.destroy_process_group()


@contextmanager
def _loopback() -> Iterator[None]:
    """Have the ranks listen on the loopback alone, where no other machine takes part."""
    variable = "GLOO_SOCKET_IFNAME"
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if FOLDER not in os.environ or variable in os.environ or not names:
        yield
        return
    os.environ[variable] = names[0]
    try:
        yield
    finally:
        del os.environ[variable]


def _end_with_rank_0(seconds: float = inf) -> None:
    """End this process with the one that has started it, if that ends in so many seconds.

    If it was killed, it has left the folder.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and os.name == "posix":  # elsewhere this would kill it
        try:
            os.kill(int(os.environ[FIRST]), 0)
        except OSError:  # no such process
            shutil.rmtree(os.environ[FOLDER], ignore_errors=True)
            os._exit(1)
        time.sleep(WATCH_SECONDS)
