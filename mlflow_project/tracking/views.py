"""A saved view of the UI's table of runs: the suggested ranges as columns."""

from __future__ import annotations

import base64
import contextlib
import json
import zlib

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.utils.time import get_current_time_millis

__all__ = ["save_view", "view_page"]

KEY = "lrrt-suggested-ranges"
TAG = f"mlflow.sharedViewState.{KEY}"
COLUMNS = (
    *("metrics.`suggested_lr_min`", "metrics.`suggested_lr_max`", "metrics.`val_loss`"),
    *("params.`batch_size`", "params.`seed`", "tags.`lrrt.verdict`"),
)


def view_page(experiment_id: str) -> str:
    """Return the page of the experiment's runs in this view, relative to the UI's address."""
    return (
        f"#/experiments/{experiment_id}/runs?viewStateShareKey={KEY}&workflowType=machine_learning"
    )


def save_view(experiment_id: str) -> None:
    """Save the view with an experiment that does not have it: under *Views*, for everybody.

    It is a tag in the form that the UI (MLflow 3.17) gives to the views that it saves itself. A UI
    that does not know it shows its own columns.
    """
    client = mlflow.MlflowClient()
    if TAG in client.get_experiment(experiment_id).tags:
        return
    state = {
        "selectedColumns": COLUMNS,
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now = get_current_time_millis()
    view = {"name": "Suggested ranges", "createdAt": now, "updatedAt": now}
    tag = json.dumps(view | {"state": f"deflate;{packed}"})
    # A server may let a user make runs and not change the experiment.
    with contextlib.suppress(MlflowException):
        client.set_experiment_tag(experiment_id, TAG, tag)
