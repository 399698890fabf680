"""What a training run takes from a range-test run, and the checks on the way."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from mlflow.entities import Run
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lrrt_stage import Confidence, Consensus, LRCurve, LRRange, LRRTError, Reading
from lrrt_stage.settings import require
from lrrt_stage.state import weights
from mlflow_project.handoff.artifacts import find_run, read_json, read_weights, readable
from mlflow_project.handoff.publishing import TASK, TASK_TAG, WEIGHTS, plan_from_json, read_reading
from mlflow_project.tracking.tags import SOURCE_TAG, STAGE_TAG, STEP_TAGS, WEIGHTS_TAG
from pipeline import Narrowing, RangeTestPlan, Task, build_schedule
from pipeline.decide.several_tests import ConsensusOptions

__all__ = ["Handoff", "load_handoff", "read_handoff"]


@dataclass(frozen=True)
class Handoff:
    """What passes from a range-test run to a training run, checked against its digests."""

    run_id: str
    task: Task
    data_sha256: str
    device: str
    weights: weights.State
    plan: RangeTestPlan
    reading: Reading
    """The curve, the suggestions of all rules, and the consensus of several tests."""

    @property
    def curve(self) -> LRCurve:
        """The curve of the range test; of several tests, that of the first."""
        return self.reading.curve

    @property
    def rule(self) -> str:
        """Name of the rule of the range: that of the plan, or a rule that replaces it."""
        return self.reading.rule

    @property
    def range(self) -> LRRange:
        """The suggested range; of several tests, their consensus."""
        lr_range = self.reading.final.range
        assert lr_range is not None
        return lr_range

    @property
    def confidence(self) -> Confidence:
        """The confidence in this range."""
        return self.reading.final.confidence

    @property
    def consensus_options(self) -> ConsensusOptions:
        """The number of tests behind the range, and how they agree on it."""
        found = self.reading.consensus
        if not isinstance(found, Consensus):
            return ConsensusOptions()
        return ConsensusOptions(len(found.ranges), found.vary, found.agreement)

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
        """Return how ``task`` or its data differs from the range test's, in words."""
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
                "to train with a range that was measured on a different task"
            )


def load_handoff(run_id: str = "latest") -> Handoff:
    """Return the hand-off of a finished range-test run: by id, or the experiment's latest.

    The id of a run that goes back to a range test (``main``, ``train``, ``refine``, ``check``) is
    accepted as well.

    Raises
    ------
    LRRTError
        If there is no such run, it is of a different stage or did not finish, or an artifact is
        missing, unreadable, or does not match the digest that the run recorded.
    """
    handoff = read_handoff(_range_test(run_id))
    require(
        handoff.reading.final.range is not None,
        f"run {run_id} is a test without a suggestion of its rule {handoff.rule}: give a different "
        "test of its study, or run lrrt on its task with a different rule",
    )
    return handoff


def read_handoff(run: Run) -> Handoff:
    """Return what a range-test run published, which may have no suggestion.

    Raises
    ------
    LRRTError
        If an artifact is missing, unreadable, or does not match the digest that the run recorded.
    """
    published = read_json(run, TASK, TASK_TAG)
    with readable(run, TASK):
        task = json.dumps(published["task"])
        data_sha256, device = published["data_sha256"], published["device"]
        plan = plan_from_json(published.get("range_test"))
    plan, reading = read_reading(run, plan)
    return Handoff(
        run_id=run.info.run_id,
        task=Task.from_json(task),
        data_sha256=data_sha256,
        device=device,
        weights=read_weights(run, WEIGHTS, WEIGHTS_TAG),
        plan=replace(plan, smoothing=reading.smoothing),
        reading=reading,
    )


def _range_test(run_id: str) -> Run:
    """Return the range test that a run is, contains, or starts from."""
    run = find_run(run_id, "lrrt", "test", "main", "train", "refine", "check")
    tag = {"main": STEP_TAGS["lrrt"], "check": STEP_TAGS["lrrt"]}
    tag |= {"train": SOURCE_TAG, "refine": SOURCE_TAG}
    stage = run.data.tags[STAGE_TAG]
    return find_run(run.data.tags[tag[stage]], "lrrt", "test") if stage in tag else run
