"""What the UI shows of runs: their pages, descriptions with links, and a view with the ranges."""

from __future__ import annotations

import base64
import contextlib
import json
import zlib
from functools import partial
from urllib.parse import quote

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.time import get_current_time_millis

from mlflow_project.tracking import tags
from mlflow_project.tracking.connection import known_experiment
from mlflow_project.tracking.record import active_record, known_record
from mlflow_project.tracking.store import PATIENCE, StoreUnavailable

__all__ = ["NOTE", "followers_page", "link", "page", "save_view", "set_description", "view_page"]

NOTE = "mlflow.note.content"
"""The tag with the description of a run."""
KEY = "lrrt-suggested-ranges"
TAG = f"mlflow.sharedViewState.{KEY}"
VIEW_COLUMNS = (
    *("metrics.`suggested_lr_min`", "metrics.`suggested_lr_max`", "metrics.`val_loss`"),
    *("params.`batch_size`", "params.`seed`", "tags.`lrrt.verdict`"),
)


def page(run: Run) -> str:
    """Return the run's page, relative to the address of the UI.

    The address selects the UI's view for model training. By default the UI opens in its GenAI
    view, which hides the columns and charts of training runs.
    """
    return (
        f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        "?workflowType=machine_learning"
    )


def view_page(experiment_id: str) -> str:
    """Return the page of the experiment's runs in this view, relative to the UI's address."""
    return (
        f"#/experiments/{experiment_id}/runs?viewStateShareKey={KEY}&workflowType=machine_learning"
    )


def followers_page(run: Run) -> str:
    """Return the page of the runs that start from ``run``, relative to the UI's address."""
    query = quote(f'tags.`{tags.SOURCE}` = "{run.info.run_id}"', safe="")
    return (
        f"#/experiments/{run.info.experiment_id}/runs?searchFilter={query}"
        "&workflowType=machine_learning"
    )


def link(run: Run | str) -> str:
    """Return a Markdown link to a run's page, by its name; by its id while the store is away."""
    if isinstance(run, str):
        run_id = run
        try:
            record, asked = known_record(run_id), partial(mlflow.get_run, run_id)
            run = PATIENCE.attempt(asked) if record is None else record.as_run()
        except Exception:  # a name ends no work
            return f"`{run_id}`"
    return f"[{run.info.run_name or run.info.run_id}]({page(run)})"


def set_description(*sentences: str) -> None:
    """Set the description of the active run, in the UI's Markdown."""
    active_record().set_tags({NOTE: " ".join(sentences)})


def save_view(experiment_id: str) -> None:
    """Save the view with an experiment that does not have it: under *Views*, for everybody.

    The view is a tag in the form that the UI of MLflow 3.17 gives to views that it saves itself. A
    UI that does not know this form shows its own columns.
    """
    client = mlflow.MlflowClient()
    order = {"orderByKey": "attributes.start_time", "orderByAsc": False}
    state = {"selectedColumns": VIEW_COLUMNS, **order}
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now = get_current_time_millis()
    view = {"name": "Suggested ranges", "createdAt": now, "updatedAt": now}
    tag = json.dumps(view | {"state": f"deflate;{packed}"})
    # A server may let a user create runs but not change the experiment, or be away.
    with contextlib.suppress(MlflowException, StoreUnavailable):
        known = known_experiment(experiment_id).tags
        if TAG not in known:
            PATIENCE.attempt(lambda: client.set_experiment_tag(experiment_id, TAG, tag))
            known[TAG] = tag
