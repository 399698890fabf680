"""What a command leaves for the next step: JSON, a table, and where to look."""

import json
import os

import mlflow
import pytest

from mlflow_project import load_handoff
from mlflow_project.cli.outcome import result_of
from mlflow_project.tracking.views import followers_page


def test_a_range_tests_json_is_enough_to_go_on_with(store, tmp_path):
    out = tmp_path / "lrrt.json"
    told = store.run("lrrt", *store.SMALL, "--output-json", out)
    run, found = store.one("lrrt"), json.loads(out.read_text())
    assert found["stage"] == "lrrt"
    assert found["run_id"] == found["lrrt_run_id"] == run.info.run_id
    assert (found["run_name"], found["experiment"]) == (run.info.run_name, "test")
    handoff = load_handoff(found["lrrt_run_id"])
    assert found["suggested_lr_min"] == handoff.range.min
    assert found["suggested_lr_max"] == handoff.range.max
    assert found["weights_sha256"] == handoff.weights_sha256
    assert (found["rule"], found["verdict"]) == ("robust", str(handoff.confidence.verdict))
    assert found["contract_version"] == 2
    assert "val_loss" not in found
    assert [path.name for path in tmp_path.glob("*lrrt.json*")] == ["lrrt.json"]
    # The permissions of any other file.
    other = tmp_path / "other"
    other.write_text("")
    assert os.stat(out).st_mode == os.stat(other).st_mode
    # Where the run is in the UI.
    info = run.info
    address = f"http://127.0.0.1:5000/#/experiments/{info.experiment_id}/runs"
    assert f"{address}/{info.run_id}?workflowType=machine_learning\n" in told.out
    assert f"{address}?viewStateShareKey=lrrt-suggested-ranges&" in told.out


@pytest.mark.starts_with("main")
def test_every_later_stage_names_its_range_test_and_its_ranges(store, tmp_path):
    main = result_of(store.one("main"))
    lrrt, refine, train = (store.one(stage) for stage in ("lrrt", "refine", "train"))
    assert main["lrrt_run_id"] == lrrt.info.run_id
    assert main["refine_run_id"] == refine.info.run_id
    assert main["train_run_id"] == train.info.run_id
    assert main["val_accuracy"] == train.data.metrics["val_accuracy"]
    assert main["trained_lr_max"] == train.data.metrics["trained_lr_max"]

    # The view of the ranges is saved once with an experiment.
    tag = "mlflow.sharedViewState.lrrt-suggested-ranges"
    first = mlflow.get_experiment_by_name("test").tags[tag]
    store.run("train", "--epochs", 1, "--output-json", tmp_path / "train.json")
    found = json.loads((tmp_path / "train.json").read_text())
    assert found["lrrt_run_id"] == lrrt.info.run_id
    for name in ("suggested", "narrowed", "trained"):
        assert 0 < found[f"{name}_lr_min"] < found[f"{name}_lr_max"]
    assert mlflow.get_experiment_by_name("test").tags[tag] == first


def test_on_standard_output_there_is_the_json_alone(store):
    outcome = store.run("lrrt", *store.SMALL, "--iterations", 60, "--output-json", "-")
    assert json.loads(outcome.out)["run_id"] == store.one("lrrt").info.run_id
    # The table is for people.
    assert "suggested LR range" in outcome.err


def test_a_link_stays_a_link_to_the_result(store, tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "lrrt.json")
    store.run("lrrt", *store.SMALL, "--iterations", 60, "--output-json", "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "lrrt.json").read_text())["stage"] == "lrrt"


def test_a_failed_stage_leaves_the_file_as_it_was(store, tmp_path):
    out = tmp_path / "lrrt.json"
    out.write_text("before")
    options = ("--iterations", 20, "--lr-end", 1e-6, "--output-json", out)
    store.run("lrrt", *store.SMALL, *options, code=2)
    assert out.read_text() == "before"


@pytest.mark.parametrize("path", ["no-folder/lrrt.json", ".", "pipe", "x" * 252])
def test_a_file_that_cannot_be_written_is_named_before_any_work(store, path):
    os.mkfifo("pipe")  # like a device, it would be replaced by a file
    outcome = store.run("lrrt", *store.SMALL, "--output-json", path, code=2)
    outcome.names("output_json='", os.path.abspath(path)[-50:], "cannot be written")
    assert not store.runs()


class TestParameters:
    """Those that tell runs apart; all options are in a file."""

    @pytest.mark.starts_with("main")
    def test_a_run_has_few_and_no_noise(self, store):
        for stage in ("main", "lrrt", "refine", "train"):
            params = store.one(stage).data.params
            assert {"dataset", "model", "optimizer", "batch_size", "seed", "rule"} <= set(params)
            assert len(params) <= 20
            assert not {"channels_last", "l2", "clip_norm", "model_args"} & set(params)
            for value in params.values():
                assert "object at" not in value
                assert not value.startswith(("/", "{'"))

    def test_what_is_not_the_default_is_one_and_all_options_are_in_the_file(self, store):
        options = ("--model-args", '{"width": 32}', "--beta", 0.9)
        store.run("lrrt", *store.SMALL, "--iterations", 60, *options)
        run = store.one("lrrt")
        params = run.data.params
        assert (params["model_args"], params["beta"]) == ('{"width": 32}', "0.9")
        options = store.json(run, "options.json")
        assert (options["beta"], options["clip_norm"], options["normalize"]) == (0.9, None, True)
        assert options["model_args"] == {"width": 32}

    @pytest.mark.starts_with("lrrt")
    def test_folders_and_passwords_are_in_no_parameter(self, store, tmp_path):
        storage = f"sqlite:///{tmp_path}/optuna.db"
        store.run("refine", "--trials", 1, "--trial-epochs", 1, "--storage", storage)
        assert store.one("refine").data.params["storage"] == "sqlite:///optuna.db"
        outcome = store.run("refine", "--storage", "postgresql://me:secret@127.0.0.1:1/db", code=2)
        assert "secret" not in outcome.err
        assert "postgresql://me:***@127.0.0.1:1/db" in outcome.error
        run = store.runs("refine")[0]
        assert run.data.params["storage"] == "postgresql://me:***@127.0.0.1:1/db"
        assert "secret" not in run.data.tags["lrrt.error"]
        assert "secret" not in json.dumps(store.json(run, "options.json"))

    def test_nor_however_deep_they_lie(self, store):
        arguments = '{"db": {"url": "postgresql://u:hunter2@h/d"}, "at": ["/home/me/x"]}'
        store.run("main", *store.SMALL, "--dataset-args", arguments, code=2)
        run = store.one("main")
        for text in (run.data.params["dataset_args"], str(store.json(run, "options.json"))):
            assert "hunter2" not in text
            assert "u:***@h/d" in text
        assert "/home" not in run.data.params["dataset_args"]


@pytest.mark.starts_with("main")
class TestDescriptions:
    """What a run's page says, with the runs around it."""

    @pytest.fixture
    def notes(self, store):
        runs = {stage: store.one(stage) for stage in ("main", "lrrt", "refine", "train")}
        notes = {stage: run.data.tags["mlflow.note.content"] for stage, run in runs.items()}
        return notes, {stage: f"/runs/{run.info.run_id}?" for stage, run in runs.items()}

    def test_they_link_to_the_runs_that_they_start_from_or_contain(self, notes):
        notes, page = notes
        for stage, linked in {
            "main": ("lrrt", "refine", "train"),
            "refine": ("lrrt",),
            "train": ("lrrt", "refine"),
        }.items():
            for other in linked:
                assert notes[stage].count(page[other]) == 1, (stage, other)

    def test_a_range_tests_links_to_the_runs_that_start_from_it(self, notes, store):
        run = store.one("lrrt")
        assert followers_page(run) in notes[0]["lrrt"]
        query = f'tags.`lrrt.source_run_id` = "{run.info.run_id}"'
        found = mlflow.search_runs(filter_string=query, output_format="list")
        assert {each.data.tags["lrrt.stage"] for each in found} == {"refine", "train"}

    def test_they_say_what_was_found(self, notes):
        for stage, note in notes[0].items():
            assert "mlp" in note, stage
            assert note.endswith("."), stage
            assert "**" in note, stage


@pytest.mark.starts_with("train")
def test_a_registered_version_tells_its_lineage(store):
    lrrt, train = store.one("lrrt"), store.one("train")
    version = mlflow.MlflowClient().get_model_version("digits", "1")
    assert version.run_id == train.info.run_id
    assert version.tags["lrrt.source_run_id"] == lrrt.info.run_id
    assert version.tags["lrrt.weights_sha256"] == lrrt.data.tags["lrrt.weights_sha256"]
    for end in ("min", "max"):
        trained = train.data.metrics[f"trained_lr_{end}"]
        assert float(version.tags[f"lrrt.trained_lr_{end}"]) == trained
        suggested = lrrt.data.metrics[f"suggested_lr_{end}"]
        assert float(version.tags[f"lrrt.suggested_lr_{end}"]) == suggested
    assert lrrt.info.run_id in version.description
    assert result_of(store.one("main"))["model"] == "models:/digits/1"
    note = store.one("main").data.tags["mlflow.note.content"]
    assert "[digits version 1](#/models/digits/versions/1)" in note
    assert train.info.run_id in version.description


@pytest.mark.starts_with("study")
def test_a_studys_json_holds_its_numbers(store):
    run = store.one("study")
    metrics = result_of(run)["metrics"]
    assert metrics["failed_tests"] == 0
    assert len(metrics) > 1
    assert metrics.items() <= run.data.metrics.items()


def test_a_file_that_fails_at_the_end_is_one_line_with_the_run(store):
    # It looks as if it could be written.
    options = ("--iterations", 60, "--output-json", "/proc/lrrt.json")
    result = store.run("lrrt", *store.SMALL, *options, code=2)
    run = store.one("lrrt")
    assert run.info.status == "FINISHED"
    result.names(run.info.run_id, "/proc/lrrt.json")
