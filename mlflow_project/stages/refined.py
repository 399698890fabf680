"""What a refinement found, as a training reads it."""

from __future__ import annotations

from lrrt_stage import LRRange
from lrrt_stage.errors import excerpt
from lrrt_stage.settings import require
from mlflow_project.handoff.artifacts import find_run, read_json, readable
from mlflow_project.handoff.fingerprints import fingerprint
from mlflow_project.handoff.handoff import Handoff
from mlflow_project.handoff.published import range_from_json
from mlflow_project.handoff.signature import check_signature
from mlflow_project.tracking import tags
from pipeline import PreparedTask, RefineOptions, ScheduleOptions

__all__ = ["load_refined", "refine_fingerprint"]

REFINED, REFINED_TAG = "refined_range.json", "lrrt.refined_sha256"


def refine_fingerprint(
    prepared: PreparedTask,
    handoff: Handoff,
    narrowed: LRRange,
    options: RefineOptions,
    schedule: ScheduleOptions,
    *,
    to_the_bit: bool = True,
) -> str:
    """Return the fingerprint of searches that would give the same range."""
    return fingerprint(
        "refine",
        prepared,
        to_the_bit=to_the_bit,
        source=handoff.uuid,
        narrowed=narrowed,
        options=options,
        schedule=schedule,
    )


def load_refined(
    run_id: str, handoff: Handoff, require_signature: bool = False
) -> tuple[str, LRRange]:
    """Return the id of a finished refinement of this range test, and its range."""
    run = find_run(run_id, "refine")
    check_signature(run, require_signature)
    source = run.data.tags.get(tags.SOURCE)
    require(
        source == handoff.run_id,
        f"refine run {run.info.run_id} belongs to range test {excerpt(source)}, not "
        f"{handoff.run_id}: refine this one, or train that one",
    )
    content = read_json(run, REFINED, REFINED_TAG)
    with readable(run, REFINED):
        return run.info.run_id, range_from_json(content["range"])
