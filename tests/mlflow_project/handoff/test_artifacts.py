import json
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrrt_stage import LRCurve, LRRTError
from mlflow_project.handoff import artifacts
from mlflow_project.handoff.published import reading_from_json
from pipeline import RangeTestPlan, Task
from tests.strategies import JSON, result_or_refusal

OBJECTS = st.fixed_dictionaries({"contract_version": st.integers(0, 3) | JSON, "task": JSON})
CONTENTS = (JSON | OBJECTS).map(lambda value: json.dumps(value).encode())


def read(content, reader):
    """What ``reader`` makes of an artifact with this content, whose digest is right."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "task.json"
        path.write_bytes(content)
        patch.setattr(artifacts, "run_file", lambda *found: path)
        tags = {"sha": artifacts.sha256(path), "lrrt.stage": "lrrt"}
        run = SimpleNamespace(info=SimpleNamespace(run_id="1a2b"), data=SimpleNamespace(tags=tags))
        return result_or_refusal(reader, run, "task.json", "sha")


@given(CONTENTS | st.binary(max_size=50) | st.just(b'{"a":' * 5_000))
def test_any_file_is_an_object_with_its_version_or_one_line_that_names_the_run(content):
    found = read(content, artifacts.read_json)
    if isinstance(found, LRRTError):
        assert "run 1a2b" in str(found)
    else:
        assert int(found["contract_version"]) <= artifacts.CONTRACT_VERSION


PARTS = st.dictionaries(
    st.sampled_from(["ramp", "smoothing", "rules", "rule", "consensus", "range", "seed", "min"]),
    JSON | st.dictionaries(st.sampled_from(["robust", "verdict", "min", "max"]), JSON),
)


@pytest.mark.parametrize(
    "make",
    [
        lambda parts: Task(**parts),
        RangeTestPlan.from_dict,
        lambda parts: reading_from_json(parts, LRCurve([], [])),
    ],
    ids=["task", "plan", "reading"],
)
@given(parts=PARTS)
def test_what_an_object_does_not_hold_is_one_line_as_well(make, parts):
    def reader(run, name, tag):
        with artifacts.readable(run, name):
            return make(parts)

    read(b"", reader)
