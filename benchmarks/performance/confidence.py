"""How long it takes to read a curve: the suggestion of every rule with its confidence."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.performance.rounds import Settings, interleaved
from benchmarks.performance.rows import Row, compared
from lrrt_stage import confidence, confidence_all
from pipeline import PreparedTask, RangeTestPlan, Runtime, Task

__all__ = ["rows"]

TARGET = 0.3


def rows(settings: Settings, seconds: float = 15) -> Iterator[Row]:
    """Yield a row for all rules, and one for the rule that is used by default."""
    plan = RangeTestPlan()
    prepared = PreparedTask(Task(), Runtime(device=str(settings.device)))
    curve = prepared.range_test(prepared.initial_weights(), plan)
    rule = plan.suggestion.rule

    def of_all() -> None:
        confidence_all(curve, plan.smoothing)

    def of_rule() -> None:
        confidence(curve, rule, plan.smoothing)

    timings = interleaved({"all": of_all, "rule": of_rule}, settings, seconds)
    measured = f"of a curve of {len(curve)} iterations of the digits, with a probe"
    yield compared(
        "confidence: all rules",
        f"seconds of confidence_all {measured}",
        timings["all"],
        target=TARGET,
        compares="measured",
    )
    yield compared(f"confidence: {rule}", f"seconds of confidence {measured}", timings["rule"])
