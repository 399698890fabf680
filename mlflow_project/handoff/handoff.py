"""What a training run takes from a range-test run, and the checks on the way."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from math import inf, isfinite

import mlflow
from mlflow.entities import Run
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lrrt_stage import Confidence, Consensus, Guard, LRCurve, LRRange, LRRTError, Reading
from lrrt_stage.errors import LONGEST, excerpt, first_line
from lrrt_stage.guard import ATTEMPTS
from lrrt_stage.settings import require, require_kind
from lrrt_stage.state import weights
from mlflow_project.handoff import version_1
from mlflow_project.handoff.artifacts import (
    find_run,
    load_artifact,
    read_json,
    read_weights,
    readable,
)
from mlflow_project.handoff.names import names_of_run, trusted_names
from mlflow_project.handoff.published import (
    CURVE,
    CURVE_TAG,
    SUGGESTIONS,
    SUGGESTIONS_TAG,
    TASK,
    TASK_TAG,
    WEIGHTS,
    reading_from_json,
)
from mlflow_project.handoff.signature import check_signature, signature_tags
from mlflow_project.tracking import tags
from mlflow_project.tracking.views import NOTE, link
from pipeline import Narrowing, RangeTestPlan, Task, build_schedule
from pipeline.data.factories import without_folders
from pipeline.data.names import is_dataset_factory
from pipeline.data.trust import NAMES, NameFromRun
from pipeline.decide.options import ConsensusOptions

__all__ = ["Handoff", "load_handoff", "read_handoff", "source_of"]

LONGEST_PATH = 4096
OWN_TRAINING = "own-training"
"""The stage of a run that :meth:`Handoff.track_training` marked."""
RANGE_TEST_OF = {
    "lrrt": None,
    "test": None,
    "main": tags.STEPS["lrrt"],
    "train": tags.SOURCE,
    OWN_TRAINING: tags.SOURCE,
    "refine": tags.SOURCE,
    "check": tags.STEPS["lrrt"],
}
"""Stage -> the tag for the range test that its run contains or starts from; None: it is one."""


@dataclass(frozen=True, repr=False)
class Handoff:
    """What a range-test run published, checked against its digests: a training starts from it."""

    run_id: str
    task: Task | None
    """None for a range test of objects in hand (``track_range_test``)."""
    data_sha256: str
    device: str
    weights: weights.State
    plan: RangeTestPlan
    reading: Reading
    """The curve, the suggestions of all rules, and the consensus of several tests."""
    uuid: str = ""
    """Names the run in fingerprints: the id changes of a run that the store was away for."""

    def __repr__(self) -> str:
        final = self.reading.final
        return f"Handoff({self.run_id!r}, {final.range}, {self.rule}: {self.reading.verdict})"

    @property
    def recipe(self) -> Task:
        """The task, by which the range test can be run again.

        Raises
        ------
        LRRTError
            For a range test of objects in hand, which has none.
        """
        if self.task is None:
            raise LRRTError(
                f"run {self.run_id} is a range test of objects in hand, which cannot be made "
                "again: write a function that makes them, and give it to lrrt with --setup "
                "package.module:factory"
            )
        return self.task

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

    @property
    def lineage(self) -> dict[str, str]:
        """The tags of a run that starts from this hand-off."""
        return {tags.SOURCE: self.run_id, tags.WEIGHTS: self.weights_sha256}

    def load_weights(self, model: nn.Module) -> None:
        """Copy the initial weights into ``model``.

        Raises
        ------
        LRRTError
            If they do not fit; the message lists the first differences.
        """
        weights.load_into(model, self.weights)

    def narrowed(self, policy: str = "top", fraction: float = 0.0) -> LRRange:
        """Return the range to train with: the suggested one, or a narrower one.

        ``policy`` and ``fraction`` are those of :class:`pipeline.Narrowing`. By default nothing is
        left out; the methods below take this range where none is given.
        """
        return Narrowing(policy, fraction)(self.range)

    def place(self, lr_range: LRRange) -> str:
        """Return words, with a link to the test, for what it suggests or for a part of that."""
        inside = "" if lr_range == self.range else "inside "
        return f"{inside}the range that {link(self.run_id)} suggests"

    def scheduler(
        self,
        optimizer: Optimizer,
        total_steps: int,
        schedule: str = "one-cycle",
        lr_range: LRRange | None = None,
    ) -> LRScheduler:
        """Return torch's scheduler over a range; call ``step()`` every iteration.

        The range is that of an attempt (:meth:`guard`); None: :meth:`narrowed`.
        """
        return build_schedule(schedule, optimizer, lr_range or self.narrowed(), total_steps)

    def guard(self, lr_range: LRRange | None = None, attempts: int = ATTEMPTS) -> Guard:
        """Return attempts at a training of one's own, which it watches by the range test.

        Iterate over it: every attempt has a range, takes the losses of the training, and says when
        to start again from the weights of this hand-off. ``lr_range`` is that of the first attempt;
        None: :meth:`narrowed`.

        Raises
        ------
        LRRTError
            If the range test shows no fall of the loss.

        Examples
        --------
        >>> for attempt in handoff.guard():                      # doctest: +SKIP
        ...     handoff.load_weights(model)
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ...     schedule = handoff.scheduler(optimizer, steps, lr_range=attempt.range)
        ...     for batch in batches:
        ...         lr = schedule.get_last_lr()[0]
        ...         loss = take_step(model, optimizer, batch)
        ...         schedule.step()
        ...         if attempt.watch(loss, lr):
        ...             break
        >>> handoff.track_training(attempt.range)                # doctest: +SKIP
        """
        return Guard(self.curve, lr_range or self.narrowed(), attempts)

    def track_training(self, lr_range: LRRange | None = None) -> None:
        """Record on the active run, a training of one's own, that it starts from this hand-off.

        The run gets the tags, ranges and digest by which ``check`` and ``compare`` find the range
        test. ``lr_range`` is what is trained; None: :meth:`narrowed`.

        Raises
        ------
        LRRTError
            If no run is active, or ``lr_range`` is no range.
        """
        fits = lr_range is None or isinstance(lr_range, LRRange)
        require_kind(fits, "lr_range", lr_range, "pass LRRange(…, …)")
        run = mlflow.active_run()
        if run is None:
            raise LRRTError("there is no active run: call track_training inside mlflow.start_run()")
        narrowed = self.narrowed()
        trained = lr_range or narrowed
        mlflow.set_tags({tags.STAGE: OWN_TRAINING, tags.RULE: self.rule} | self.lineage)
        ranges = {"suggested": self.range, "narrowed": narrowed, "trained": trained}
        for name, each in ranges.items():
            mlflow.log_metrics({f"{name}_lr_min": each.min, f"{name}_lr_max": each.max})
        if NOTE not in run.data.tags:
            mlflow.set_tag(
                NOTE,
                f"Trains over learning rates from **{trained}**, {self.place(trained)} "
                f"({self.range}).",
            )
        mlflow.set_tags(signature_tags(mlflow.get_run(run.info.run_id)))

    def differences(self, task: Task, data_sha256: str | None = None) -> list[str]:
        """Return how ``task``, or else its data, differs from the range test's, in words."""
        mine = self.recipe
        if not is_dataset_factory(task.dataset) and task.data_name == mine.data_name:
            # The same files in a different folder: their digest tells.
            mine = replace(mine, dataset=task.dataset)
        differences = task.differences(mine)
        if not differences and data_sha256 not in (None, self.data_sha256):
            return [f"content of {task.setup or task.dataset!r}"]
        return differences

    def check(self, task: Task, data_sha256: str | None = None) -> None:
        """Raise LRRTError if ``task`` or its data is not what the range test ran on."""
        differences = self.differences(task, data_sha256)
        more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
        require(
            not differences,
            f"the task differs from range-test run {self.run_id} in "
            f"{'; '.join(differences[:5])}{more}: run lrrt on this task, or pass "
            "allow_mismatch=true to train with a range that was measured on a different task",
        )


def load_handoff(
    run_id: str = "latest",
    *,
    trust: str | Iterable[str] | None = None,
    require_signature: bool = False,
) -> Handoff:
    """Return the hand-off of a finished range-test run: by id, or the experiment's latest.

    The id of a run that goes back to a range test (``main``, ``train``, ``refine``, ``check``) is
    accepted as well.

    Parameters
    ----------
    trust
        Modules (``a.b``), functions (``a.b:c``), paths (``imagefolder:PATH``, ``file:PATH``) and
        variables (``env:NAME``) that the hand-off may name, beside those of ``LRRT_TRUST``. What
        else it names is refused where it would be used, before any import.
    require_signature
        Whether the runs must be signed with the key in ``LRRT_SIGNING_KEY``.

    Raises
    ------
    LRRTError
        If there is no such run, it is of a different stage or did not finish, or an artifact is
        missing, unreadable, or does not match the digest that the run recorded; or if a signature
        is required and wrong.
    """
    run = find_run(run_id, *(("lrrt",) if run_id == "latest" else RANGE_TEST_OF))
    check_signature(run, require_signature)
    source = RANGE_TEST_OF[run.data.tags[tags.STAGE]]
    if source is not None:
        run = find_run(_named_run(run, source), "lrrt", "test")
        check_signature(run, require_signature)
    handoff = read_handoff(run, trust)
    require(
        handoff.reading.final.range is not None,
        f"run {run_id} is a test without a suggestion of its rule {handoff.rule}: give a different "
        "test of its study, or run lrrt on its task with a different rule",
    )
    return handoff


def read_handoff(run: Run, trust: str | Iterable[str] | None = None) -> Handoff:
    """Return what a range-test run published, which may have no suggestion."""
    trusted = trusted_names(trust)
    inputs = read_json(run, TASK, TASK_TAG)
    suggestions = read_json(run, SUGGESTIONS, SUGGESTIONS_TAG)
    curve = load_artifact(run, CURVE, LRCurve.from_csv, CURVE_TAG)
    state = read_weights(run, WEIGHTS, tags.WEIGHTS)
    with readable(run, TASK):
        task = inputs["task"]
        require(task is None or isinstance(task, dict), "task is no object")
        unknown = {*(task or {})} - {field.name for field in fields(Task)}
    require(
        not unknown,
        f"run {run.info.run_id} was published by a newer version of lrrt-stage, with "
        f"{excerpt(', '.join(sorted(unknown)))}: update lrrt-stage",
    )
    with readable(run, CURVE):
        require(len(curve) > 0, "it has no iteration")
        usable = bool((curve.lr > 0).all()) and isfinite(curve.lr.max())
        require(usable, "a learning rate is no number above 0")
    with readable(run, f"{TASK} or {SUGGESTIONS}"):
        ended = suggestions["curve"]
        epochs = ended["epochs"]
        counted = isinstance(epochs, (int, float)) and not isinstance(epochs, bool) and epochs > 0
        require(epochs is None or counted, "epochs is no number above 0")
        curve = replace(curve, stop=ended["stop"], epochs=epochs)
        if inputs["contract_version"] == 1:
            curve = version_1.translate(run, inputs, suggestions, curve)
        if curve.probe_loss is not None and "probe_every" not in inputs["range_test"]["ramp"]:
            # Earlier versions evaluated it at every iteration, and kept a loss that was NaN.
            losses = curve.probe_loss.copy()
            losses[losses != losses] = inf
            curve = replace(curve, probe_loss=losses)
        for name in ("data_sha256", "device"):
            require(isinstance(inputs[name], str), f"{name} is no text")
        handoff = Handoff(
            run_id=run.info.run_id,
            task=None if task is None else Task(**names_of_run(task, run.info.run_id, trusted)),
            data_sha256=inputs["data_sha256"],
            device=inputs["device"],
            weights=state,
            plan=RangeTestPlan.from_dict(inputs["range_test"]),
            reading=reading_from_json(suggestions, curve),
            uuid=run.data.tags.get(tags.UUID, run.info.run_id),
        )
        for name in NAMES if handoff.task is not None else ():
            named = getattr(handoff.task, name)
            # A path may be longer than what an error repeats.
            longest = LONGEST_PATH if isinstance(named, NameFromRun) else LONGEST
            told = named is None or (named.isprintable() and len(named) <= longest)
            require(told, f"{name} is no name of anything")
        return handoff


def source_of(
    name: str,
    *,
    trust: str | Iterable[str] | None = None,
    require_signature: bool = False,
) -> tuple[Run, Handoff]:
    """Return a run, by its id or that of a model, and the range test behind it.

    A model is ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``. Of a run of ``main`` it is the
    training; ``latest`` is the experiment's newest finished training, also of one's own program.
    """
    run_id = _run_of_model(name) if name.startswith("models:/") else name
    run = find_run(run_id, *(("train", OWN_TRAINING) if run_id == "latest" else RANGE_TEST_OF))
    check_signature(run, require_signature)
    if run.data.tags[tags.STAGE] == "main":
        run = find_run(_named_run(run, tags.STEPS["train"]), "train")
    return run, load_handoff(run.info.run_id, trust=trust, require_signature=require_signature)


def _named_run(run: Run, tag: str) -> str:
    """Return the id of a run that a tag of ``run`` names."""
    run_id = run.data.tags.get(tag, "")
    require(
        re.fullmatch(r"\w{1,64}", run_id) is not None,
        f"run {run.info.run_id} names no run in its tag {tag} ({excerpt(run_id)!r}): it was "
        "altered or is incomplete; give a different one",
    )
    return run_id


def _run_of_model(uri: str) -> str:
    try:
        run_id = mlflow.models.get_model_info(uri).run_id
    except Exception as error:  # the registry's, or the artifact store's
        reason = excerpt(without_folders(first_line(error)))
        raise LRRTError(
            f"there is no model {uri!r} ({reason}): give models:/NAME/VERSION or "
            "models:/NAME@ALIAS of a registered model"
        ) from error
    require(bool(run_id), f"model {uri!r} belongs to no run: give the id of a run")
    return str(run_id)
