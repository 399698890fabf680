"""How each kind of request is sent to the tracking store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.uri import add_databricks_profile_info_to_artifact_uri

from lrrt_stage.settings import require
from mlflow_project.tracking import tags

if TYPE_CHECKING:
    from mlflow_project.tracking.outbox import Outbox

__all__ = ["FILES", "MODEL", "SENDERS"]

FILES, MODEL = "files", "model"
"""Folders of a run: what becomes its artifacts, and its model."""


def _send_log(outbox: Outbox, content: Mapping[str, Any]) -> None:
    outbox.client.log_batch(
        outbox.state.run_id,
        # With the times of the first attempt, by which a database knows what it has already.
        metrics=[Metric(*point) for point in content.get("metrics", [])],
        params=[Param(*each) for each in content.get("params", {}).items()],
        tags=[RunTag(*each) for each in content.get("tags", {}).items()],
    )


def _send_input(outbox: Outbox, content: Mapping[str, Any]) -> None:
    context = InputTag("mlflow.data.context", "training")
    dataset = DatasetInput(Dataset(**content["dataset"]), [context])
    try:
        outbox.client.log_inputs(outbox.state.run_id, [dataset])
    except MlflowException as error:
        if error.error_code != "BAD_REQUEST":
            raise
        # Another run has added the same dataset between MLflow's query and its insertion.
        outbox.client.log_inputs(outbox.state.run_id, [dataset])


def _send_file(outbox: Outbox, content: Mapping[str, Any]) -> None:
    folder = str(PurePosixPath(content["name"]).parent)
    path, files = outbox.folder / FILES / content["name"], outbox.folder / FILES
    require(
        path.resolve().is_relative_to(files.resolve()),
        f"{content['name']} is no file of the run: remove the link",
    )
    arguments = str(path), None if folder == "." else folder
    if outbox.artifact_uri:
        _artifacts(outbox.artifact_uri, outbox.client.tracking_uri).log_artifact(*arguments)
    else:
        outbox.client.log_artifact(outbox.state.run_id, *arguments)


@lru_cache(maxsize=16)
def _artifacts(artifact_uri: str, tracking_uri: str) -> ArtifactRepository:
    """Return what a client makes of a run's folder, without the request by which it asks for it."""
    uri = add_databricks_profile_info_to_artifact_uri(artifact_uri, tracking_uri)
    return get_artifact_repository(uri, tracking_uri=tracking_uri)


def _send_model(outbox: Outbox, content: dict[str, Any]) -> None:
    """Log the saved model as that of the run, and register it."""
    client, folder, experiment = outbox.client, outbox.folder / MODEL, outbox.state.experiment_id
    run = client.get_run(outbox.state.run_id)
    run_id = run.info.run_id
    # What an earlier attempt has done, perhaps without an answer, is not repeated.
    made = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    model = (
        made[0]
        if made
        else client.create_logged_model(experiment, "model", run_id, params=run.data.params)
    )
    outputs = [] if run.outputs is None else run.outputs.model_outputs
    if model.model_id not in [each.model_id for each in outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    saved = Model.load(str(folder))
    saved.model_uuid = saved.model_id = model.model_id
    saved.run_id, saved.artifact_path = run_id, model.artifact_location
    saved.save(str(folder / "MLmodel"))
    client.log_model_artifacts(model.model_id, str(folder))
    last = [Metric(n, v, t, s, model.model_id) for n, v, t, s in content["metrics"]]
    client.log_batch(run_id, metrics=last)  # the run has them already
    client.finalize_logged_model(model.model_id, "READY")
    if content["register"] is not None:
        _register(outbox, model.model_id, content)


def _register(outbox: Outbox, model_id: str, content: Mapping[str, Any]) -> None:
    client, name, source = outbox.client, content["register"], f"models:/{model_id}"
    with suppress(MlflowException):  # it is there already, or the version is refused below
        client.create_registered_model(name)
    versions = client.search_model_versions(f"name = '{name}'")
    number = next((each.version for each in versions if each.source == source), None)
    if number is None:
        made = client.create_model_version(
            name, source, outbox.state.run_id, model_id=model_id, await_creation_for=0
        )
        number = made.version
    client.update_model_version(name, number, content["description"])
    for tag, value in content["lineage"].items():
        client.set_model_version_tag(name, number, tag, value)
    registered = {tags.MODEL: f"models:/{name}/{number}"}
    _send_log(outbox, {"tags": registered})
    outbox.state.tags |= registered


def _send_end(outbox: Outbox, content: Mapping[str, Any]) -> None:
    if outbox.state.is_told:  # with an error that says that not everything is sent
        if tags.ERROR in outbox.state.tags:
            own = outbox.with_ids({tags.ERROR: outbox.state.tags[tags.ERROR]})
            outbox.request("log", tags=own)
        else:
            with suppress(MlflowException):
                outbox.client.delete_tag(outbox.state.run_id, tags.ERROR)
    outbox.tell(content["status"], content["time"])


SENDERS: dict[str, Callable[[Outbox, Any], None]] = {
    "log": _send_log,
    "input": _send_input,
    "file": _send_file,
    "model": _send_model,
    "end": _send_end,
}
"""Kind of a request -> how it is sent. Each may be repeated after an attempt that failed."""
