"""The curves of a finished study, grouped by the order of magnitude of what they suggest."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from lrrt_stage import LRRTError
from pipeline.jobs.jobs import RangeTestResult
from pipeline.studies.curves import bands_figure, loss_name, loss_read
from pipeline.studies.statistics import coverage
from pipeline.studies.study import Findings, Study, counted, kind, suggested

__all__ = ["grouped_study"]


@kind("grouped", 7.5, takes_tests=True, one_test=True)
def grouped_study(study: Study) -> Findings:
    """Curves by order of magnitude of the suggested maximum (the article's published code)."""
    if study.source is None:
        raise LRRTError(
            "kind=grouped takes the tests of a finished study: name it with study_run_id"
        )
    found = suggested(study.source)
    groups: dict[str, list[RangeTestResult]] = {}
    for test in sorted(study.source, key=lambda test: test.range.max if test.range else 0):
        if test.range is not None:
            groups.setdefault(_decade(test.range.max), []).append(test)
    table = pd.DataFrame(
        {
            "maximum": name,
            "tests": len(tests),
            "share": len(tests) / len(found),
            "first loss": np.median([test.curve.loss[0] for test in tests]),
            "lowest loss": np.median([loss_read(test.reading).loss.min() for test in tests]),
        }
        for name, tests in groups.items()
    )
    read = [test.reading for tests in groups.values() for test in tests]
    covered, sentence = coverage(found, len(study.source))
    numbers = ", ".join(f"{len(tests)} from {name}" for name, tests in groups.items())
    losses = ", ".join(
        f"{loss:.3g} ({name})" for name, loss in zip(groups, table["lowest loss"], strict=True)
    )
    return Findings(
        "Curves grouped by the order of magnitude of their maximum",
        "Do tests that suggest very different learning rates look different?",
        [
            f"The suggested maxima of {counted(len(found), 'test')} fall into "
            f"{counted(len(groups), 'order')} of magnitude: {numbers}.",
            f"In the median over the tests of a group, the {loss_name(read)} falls to {losses}.",
        ],
        f"{sentence} Where groups reach the same loss, the lower group's maximum is safer.",
        {"groups": len(groups), "largest_group_share": table["share"].max(), **covered},
        {
            "groups": bands_figure(
                {
                    f"Maximum from {name}: {counted(len(tests), 'test')}": tests
                    for name, tests in groups.items()
                }
            )
        },
        {"Groups": table},
    )


def _decade(lr: float) -> str:
    """Return the order of magnitude; a power of ten begins its own, to the ninth digit."""
    power = math.floor(round(math.log10(lr), 9))
    return f"1e{power} to 1e{power + 1}"
