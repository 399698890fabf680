"""A job with the place where it runs, as a worker gets it."""

from __future__ import annotations

from typing import TypeAlias

import torch

from lrrt_stage import LRRTError
from lrrt_stage.errors import first_line
from pipeline.jobs.jobs import FailedJob, Job, JobResult
from pipeline.task.tasks import Runtime

__all__ = ["TRIES", "Placed", "run_placed"]

TRIES = 3
"""How often a job is run whose worker is ended from outside, perhaps by the job itself."""

Placed: TypeAlias = tuple[int, Job, Runtime]
"""The number of a job, the job, and where it runs."""


def run_placed(placed: Placed) -> tuple[int, JobResult]:
    """Run a job with one thread, and return its number and its result."""
    index, job, runtime = placed
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return index, job.run(runtime)
    except Exception as error:  # one bad test must not end a study
        kind = "" if isinstance(error, LRRTError) else f"{type(error).__name__}: "
        return index, FailedJob(job, kind + first_line(error))
    finally:
        torch.set_num_threads(threads)
