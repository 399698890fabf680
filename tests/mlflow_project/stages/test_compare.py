import pytest

from mlflow_project.cli.outcome import result_of


@pytest.fixture
def two(store):
    store.run("lrrt", *store.SMALL, "--batch-size", 32)
    return store.runs("lrrt")


@pytest.mark.starts_with("train")
def test_tests_are_named_after_what_they_differ_in(store, two):
    outcome = store.run("compare", *(run.info.run_id for run in two))
    run = store.one("compare")
    assert run.info.run_name == "compare batch_size=32 against batch_size=128"
    assert {"overlay.png", "ranges.csv"} == store.artifacts(run)
    rows = store.csv(run, "ranges.csv")
    assert rows["test"].tolist() == ["batch_size=32", "batch_size=128"]
    for row, test in zip(rows.itertuples(), two, strict=True):
        assert row.run_id == test.info.run_id
        assert row.lr_max == test.data.metrics["suggested_lr_max"]
        assert row.max_low <= row.lr_max <= row.max_high
        assert row.verdict == test.data.tags["lrrt.verdict"]
        # A link to each.
        assert f"/runs/{test.info.run_id}" in run.data.tags["mlflow.note.content"]
    assert "batch_size=32: " in outcome.err
    tests = result_of(run)["tests"]
    assert [each["lrrt_run_id"] for each in tests] == [test.info.run_id for test in two]
    assert tests[0]["suggested_lr_max"] == two[0].data.metrics["suggested_lr_max"]


@pytest.mark.starts_with("train")
def test_two_of_one_task_are_told_apart_by_their_ids(store, lrrt):
    trained = store.one("train")
    store.run("lrrt", *store.SMALL)
    again = store.runs("lrrt")[0]
    # A training stands for the range test that it began with.
    store.run("compare", f"{trained.info.run_id},{again.info.run_id}")
    rows = store.csv(store.one("compare"), "ranges.csv")
    assert rows["run_id"].tolist() == [lrrt.info.run_id, again.info.run_id]
    name = "lrrt digits mlp batch 128 seed 0"
    assert rows["test"].tolist() == [f"{name} ({run.info.run_id[:6]})" for run in (lrrt, again)]


@pytest.mark.starts_with("lrrt")
def test_what_cannot_be_compared_is_one_line(store, lrrt):
    first = lrrt.info.run_id
    for given, named in (((first,), "two"), ((first, first), first), ((first, "0" * 32), "0" * 32)):
        store.run("compare", *given, code=2).names(named)
    # Before a run is opened.
    assert not store.runs("compare")
    store.run("compare", code=2).names("argument")
