"""Calls of functions in processes; what a call returned is kept in a folder and not repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import joblib
import torch
from joblib import Parallel, delayed
from tqdm import tqdm

from lrrt_stage.files import replacing

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
        self.folder, self.workers = Path(folder), workers

    def run(self, function: Callable[..., Any], calls: Iterable[tuple], title: str) -> list[Any]:
        """Return what the function returns for the arguments of each call, in their order."""
        calls = list(calls)
        keys = [joblib.hash(call) for call in calls]
        different = dict(zip(keys, calls, strict=True))
        results = Parallel(n_jobs=self.workers, batch_size=1, return_as="generator")(
            delayed(_kept)(self.folder / function.__name__ / f"{key}.pickle", function, call)
            for key, call in different.items()
        )
        shown = tqdm(results, title, len(different), mininterval=1)
        of_key = dict(zip(different, shown, strict=True))
        return [of_key[key] for key in keys]


def _kept(path: Path, function: Callable[..., Any], call: tuple) -> Any:
    if path.exists():
        return joblib.load(path)
    # Two sums in two threads may round otherwise than in one, and results have to repeat.
    torch.set_num_threads(1)
    result = function(*call)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        joblib.dump(result, part)
    return result
