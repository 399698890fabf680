"""What a run says of itself on its page in the UI, with links to the runs around it."""

from __future__ import annotations

import re

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from lrrt_stage import LRRTError
from lrrt_stage.errors import first_line
from mlflow_project.tracking import console
from mlflow_project.tracking.runs import get_run

__all__ = ["describe", "followed_by", "link", "link_to_model", "page", "registered_model"]

NOTE = "mlflow.note.content"
FOLLOWED = "Followed by "
LINKS = re.compile(rf"\n\n{FOLLOWED}((?:\[[^\]]*\]\([^)]*\)(?:, )?)+)\.$")
"""What :func:`followed_by` has written, at the end; what a person adds after it is left alone."""
FOLLOWERS = 10
"""Of a run that is checked every night the newest are named: MLflow bounds the length of a tag."""


def page(run: Run) -> str:
    """Return the run's page, relative to the address of the UI.

    The UI opens in what it calls GenAI, which hides a training run's columns and charts, until it
    is told otherwise once; the address tells it.
    """
    return (
        f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        "?workflowType=machine_learning"
    )


def link(run: Run | str) -> str:
    """Return a Markdown link to a run's page, by its name."""
    run = get_run(run) if isinstance(run, str) else run
    name = (run.info.run_name or run.info.run_id).translate({ord("["): "(", ord("]"): ")"})
    return f"[{name}]({page(run)})"


def registered_model(run_id: str) -> ModelVersion | None:
    """Return the version of a registered model that a run made; None if it did not.

    None too where the registry cannot be asked: nothing else depends on it.
    """
    try:
        found = mlflow.MlflowClient().search_model_versions(f"run_id = '{run_id}'")
    except MlflowException:
        return None
    return found[0] if found else None


def link_to_model(model: ModelVersion) -> str:
    """Return a Markdown link to the page of a registered model's version."""
    page = f"#/models/{model.name}/versions/{model.version}"
    return f"[{model.name} version {model.version}]({page})"


def describe(run: Run, *sentences: str) -> None:
    """Set the run's description, in the UI's Markdown."""
    mlflow.MlflowClient().set_tag(run.info.run_id, NOTE, " ".join(sentences))


def followed_by(run_id: str, follower: Run) -> None:
    """Add a link to ``follower``, which began with what ``run_id`` found, to its description.

    The newest :data:`FOLLOWERS` are kept there. Of runs that end at the same moment one may be
    left out; where the earlier run cannot be changed any more, nothing is.
    """
    try:
        text = get_run(run_id).data.tags.get(NOTE, "")
        links = LINKS.search(text)
        followers = links[1].split(", ") if links else []
        # By its id: it was given its name after it was opened.
        followers.append(link(follower.info.run_id))
        told = text[: links.start()] if links else text
        note = f"{told}\n\n{FOLLOWED}{', '.join(followers[-FOLLOWERS:])}."
        mlflow.MlflowClient().set_tag(run_id, NOTE, note)
    except (LRRTError, MlflowException) as error:
        console.note(f"run {run_id} could not be told what follows it: {first_line(error)}")
