"""What a training run takes from a range-test run, and the checks on the way."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lrrt_stage import Confidence, LRCurve, LRRange, LRRTError, Smoothing, Verdict
from lrrt_stage.settings import require
from lrrt_stage.state import weights
from mlflow_project.handoff.artifacts import find_run, read_curve, read_json, read_weights, readable
from mlflow_project.handoff.publishing import FILE_TAGS, SUGGESTIONS, TASK, WEIGHTS
from mlflow_project.tracking.tags import SOURCE_TAG, STAGE_TAG, STEP_TAGS, WEIGHTS_TAG
from pipeline import Narrowing, RangeTestPlan, Task, build_schedule
from pipeline.decide.several_tests import ConsensusOptions

__all__ = ["Handoff", "load_handoff"]


@dataclass(frozen=True)
class Handoff:
    """What passes from a range-test run to a training run, checked against its digests."""

    run_id: str
    task: Task
    data_sha256: str
    device: str
    weights: weights.State
    curve: LRCurve
    plan: RangeTestPlan
    rule: str
    """Of which the range is: that of the plan, or one that stood in for it."""
    range: LRRange
    """The range that the chosen rule suggests; of several tests, their consensus."""
    consensus: ConsensusOptions = field(default_factory=ConsensusOptions)
    """How many tests the range is the consensus of; one, where it is that of the curve."""
    confidence: Confidence | None = None
    """How far it can be trusted; None where a run of an earlier version does not say."""

    @property
    def weights_sha256(self) -> str:
        """Digest of the initial weights."""
        return weights.digest(self.weights)

    def load_weights(self, model: nn.Module) -> None:
        """Copy the initial weights into ``model``.

        Raises
        ------
        LRRTError
            If they do not fit; the message lists the first differences.
        """
        weights.load_into(model, self.weights)

    def narrowed(self, policy: str = "top", fraction: float | None = None) -> LRRange:
        """Return the narrower range to train with."""
        narrowing = Narrowing(policy) if fraction is None else Narrowing(policy, fraction)
        return narrowing(self.range)

    def scheduler(
        self, optimizer: Optimizer, total_steps: int, schedule: str = "one-cycle"
    ) -> LRScheduler:
        """Return torch's scheduler over the narrowed range; call ``step()`` every iteration."""
        return build_schedule(schedule, optimizer, self.narrowed(), total_steps)

    def differences(self, task: Task, data_sha256: str | None = None) -> list[str]:
        """Return what ``task`` or its data has that the range test's has not, in words."""
        differences = task.differences(self.task)
        if not differences and data_sha256 not in (None, self.data_sha256):
            return [f"content of dataset {task.dataset!r}"]
        return differences

    def check(self, task: Task, data_sha256: str | None = None) -> None:
        """Raise LRRTError if ``task`` or its data is not what the range test ran on."""
        differences = self.differences(task, data_sha256)
        if differences:
            raise LRRTError(
                f"the task differs from range-test run {self.run_id} in "
                f"{'; '.join(differences)}: run lrrt on this task, or pass allow_mismatch=true "
                "to train on purpose with a range that was measured on another"
            )


def load_handoff(run_id: str = "latest") -> Handoff:
    """Return the hand-off of a finished range-test run: by id, or the experiment's latest.

    The id of a run that goes back to one (``main``, ``train``, ``refine``, ``check``) does as well.

    Raises
    ------
    LRRTError
        If there is no such run, it is of another stage or did not finish, an artifact is
        missing or unreadable, or does not match the digest that the run recorded.
    """
    run = _range_test(run_id)
    state = read_weights(run, WEIGHTS, WEIGHTS_TAG)
    with tempfile.TemporaryDirectory(prefix="lrrt-") as folder:
        published = read_json(run, TASK, FILE_TAGS[TASK], folder)
        suggestions = read_json(run, SUGGESTIONS, FILE_TAGS[SUGGESTIONS], folder)
        with readable(run, Path(TASK)):
            task = json.dumps(published["task"])
            data_sha256, device = published["data_sha256"], published["device"]
        require(
            run.data.tags[STAGE_TAG] != "test" or suggestions.get("range") is not None,
            f"run {run_id} is a test without a suggestion of its rule {suggestions.get('rule')}: "
            "give another test of its study, or run lrrt on its task with another rule",
        )
        with readable(run, Path(SUGGESTIONS)):
            rule, lr_range = suggestions["rule"], LRRange(**suggestions["range"])
            plan = RangeTestPlan(smoothing=Smoothing(**suggestions["smoothing"]))
            if "range_test" in published:  # which runs of before there were checks do not have
                plan = RangeTestPlan.from_dict(published["range_test"])
            stop, epochs = (suggestions["curve"][name] for name in ("stop", "epochs"))
            agreed = suggestions.get("consensus")
            how_sure = _confidence(agreed or suggestions["rules"][rule])
            consensus = ConsensusOptions()
            if agreed is not None:
                names = ("tests", "vary", "agreement")
                consensus = ConsensusOptions(**{name: agreed[name] for name in names})
        curve = read_curve(run, folder, stop=stop, epochs=epochs)
    return Handoff(
        run_id=run.info.run_id,
        task=Task.from_json(task),
        data_sha256=data_sha256,
        device=device,
        weights=state,
        curve=curve,
        plan=plan,
        rule=rule,
        range=lr_range,
        consensus=consensus,
        confidence=how_sure,
    )


def _range_test(run_id: str) -> Run:
    """Return the range test that a run is, is made of, or goes on from."""
    run = find_run(run_id, "lrrt", "test", "main", "train", "refine", "check")
    tag = {"main": STEP_TAGS["lrrt"], "check": STEP_TAGS["lrrt"]}
    tag |= {"train": SOURCE_TAG, "refine": SOURCE_TAG}
    stage = run.data.tags[STAGE_TAG]
    return find_run(run.data.tags[tag[stage]], "lrrt", "test") if stage in tag else run


def _confidence(answer: dict[str, Any]) -> Confidence | None:
    """Return what :func:`_interval` wrote; None for a run of before there were intervals."""
    if "interval" not in answer:
        return None
    return Confidence(**answer["interval"], verdict=Verdict(answer["verdict"]))
