"""From what a person names, a run or a registered model, to the range test behind it."""

from __future__ import annotations

from dataclasses import dataclass

import mlflow
from mlflow.entities import Run

from lrrt_stage import LRRTError
from lrrt_stage.errors import first_line
from lrrt_stage.settings import require
from mlflow_project.handoff.artifacts import find_run
from mlflow_project.handoff.handoff import Handoff, load_handoff
from mlflow_project.tracking.tags import STAGE_TAG, STEP_TAGS

__all__ = ["Source", "source_of"]

MODELS = "models:/"


@dataclass(frozen=True)
class Source:
    """A run, and the range test behind it."""

    run: Run
    """The run that was named, or the training of the model or the run of ``main`` that was."""
    handoff: Handoff

    @property
    def peak_lr(self) -> float:
        """The largest learning rate of the training or of the refined range; of a range test, that
        of ``Handoff.scheduler``."""
        metrics = self.run.data.metrics
        for name in ("trained_lr_max", "refined_lr_max", "lr_in_use"):
            if name in metrics:
                return metrics[name]
        return self.handoff.narrowed().max


def source_of(name: str) -> Source:
    """Return the range test behind a run, by its id, or a model: ``models:/NAME/VERSION`` or
    ``models:/NAME@ALIAS``.

    Runs are of ``train``, ``lrrt``, ``main``, ``refine``, ``check``, or a test of a study;
    ``latest`` is the experiment's newest finished training.

    Raises
    ------
    LRRTError
        If there is no such run or model, it comes from no range test, or that cannot be read.
    """
    run = find_run(
        _run_of_model(name) if name.startswith(MODELS) else name,
        *("train", "lrrt", "test", "main", "refine", "check"),
    )
    if run.data.tags[STAGE_TAG] == "main":
        run = find_run(run.data.tags[STEP_TAGS["train"]], "train")
    return Source(run, load_handoff(run.info.run_id))


def _run_of_model(uri: str) -> str:
    try:
        run_id = mlflow.models.get_model_info(uri).run_id
    except Exception as error:  # the registry's, or the artifact store's
        raise LRRTError(
            f"there is no model {uri!r} ({first_line(error)}): give models:/NAME/VERSION or "
            "models:/NAME@ALIAS of a registered model"
        ) from error
    require(bool(run_id), f"model {uri!r} belongs to no run: give the id of a run")
    return str(run_id)
