"""The description of a run on its page in the UI, with links to related runs."""

from __future__ import annotations

import mlflow
from mlflow.entities import Run

from mlflow_project.tracking.runs import get_run

__all__ = ["describe", "link", "page"]


def page(run: Run) -> str:
    """Return the run's page, relative to the address of the UI.

    The address selects the UI's view for model training. By default the UI opens in its GenAI
    view, which hides the columns and charts of training runs.
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


def describe(run: Run, *sentences: str) -> None:
    """Set the run's description, in the UI's Markdown."""
    mlflow.MlflowClient().set_tag(run.info.run_id, "mlflow.note.content", " ".join(sentences))
