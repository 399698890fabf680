"""Calls of functions in processes; what a call returned is kept in a folder and not repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from joblib import Memory, Parallel, delayed
from tqdm import tqdm

__all__ = ["Work"]


class Work:
    """Computes, and keeps every single result as soon as it is there.

    A result is kept by the function's name and its arguments, so empty the folder when what they
    call has changed.

    Parameters
    ----------
    folder
        Where results are kept.
    workers
        Processes, with one thread each; 1: in this process.
    """

    def __init__(self, folder: str | Path, workers: int = 1) -> None:
        # Of a string joblib would make another folder than of a path.
        self.memory, self.workers = Memory(Path(folder), verbose=0), workers

    def run(self, function: Callable[..., Any], calls: Iterable[tuple], title: str) -> list[Any]:
        """Return what the function returns for the arguments of each call, in their order."""
        calls = list(calls)
        different = list(dict.fromkeys(calls))
        kept = self.memory.cache(function)
        results = Parallel(n_jobs=self.workers, batch_size=1, return_as="generator")(
            delayed(_in_one_thread)(kept, call) for call in different
        )
        shown = tqdm(results, title, len(different), mininterval=1)
        of_call = dict(zip(different, shown, strict=True))
        return [of_call[call] for call in calls]


def _in_one_thread(function: Callable[..., Any], call: tuple) -> Any:
    # Two sums in two threads may round otherwise than in one, and results have to repeat.
    torch.set_num_threads(1)
    return function(*call)
