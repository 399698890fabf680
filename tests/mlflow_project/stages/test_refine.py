import hashlib
import sys

import mlflow
import optuna
import pytest

from pipeline import TrainOptions

QUICK = ("--trials", 4, "--trial-epochs", 2)


def trials(store, parent):
    return sorted(store.children(parent, "trial"), key=lambda run: int(run.data.params["trial"]))


@pytest.mark.starts_with("refine")
def test_every_trial_is_a_nested_run_from_the_same_weights(store, lrrt):
    run = store.one("refine")
    assert run.data.tags["lrrt.source_run_id"] == lrrt.info.run_id
    nested = trials(store, run)
    assert len(nested) == 4
    first_losses = {store.history(trial, "train_loss")[1][0] for trial in nested}
    assert first_losses == {store.history(lrrt, "train_loss")[1][0]}
    low, high = run.data.metrics["narrowed_lr_min"], run.data.metrics["narrowed_lr_max"]
    peaks = [trial.data.metrics["trained_lr_max"] for trial in nested]
    assert peaks[0] == pytest.approx(high)
    assert all(low <= peak <= high * (1 + 1e-9) for peak in peaks)
    assert {trial.data.tags["lrrt.trial_state"] for trial in nested} <= {"complete", "pruned"}


@pytest.mark.starts_with("refine")
def test_its_best_range_feeds_train(store, lrrt):
    run = store.one("refine")
    refined = store.json(run, "refined_range.json")["range"]
    table = store.csv(run, "trials.csv")
    best = table[table["state"] == "COMPLETE"].sort_values("value").iloc[0]
    assert refined["max"] == pytest.approx(best["params_peak_lr"])
    assert run.data.metrics["refined_lr_max"] == pytest.approx(refined["max"])
    store.run("train", "--epochs", 1, "--refine-run-id", "latest")
    train = store.one("train")
    assert train.data.tags["lrrt.refine_run_id"] == run.info.run_id
    assert train.data.metrics["trained_lr_max"] == pytest.approx(refined["max"])
    assert max(store.history(train, "lr")[1]) == pytest.approx(refined["max"], rel=0.1)


@pytest.mark.starts_with("refine")
def test_history_and_slice_are_logged(store, lrrt):
    names = {"history.png", "loss_over_peak_lr.png", "trials.csv"}
    assert names <= store.artifacts(store.one("refine"))


@pytest.mark.starts_with("refine")
def test_an_interrupted_search_goes_on_where_it_stopped(store, lrrt, monkeypatch):
    whole = [run.data.metrics["trained_lr_max"] for run in trials(store, store.one("refine"))]

    stage = sys.modules["mlflow_project.stages.refine"]
    real = stage.log_training
    seen = []

    def interrupting(training, *args):
        real(training, *args)
        seen.append(training)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "log_training", interrupting)
        store.run("refine", *QUICK, "--study-name", "cut", code=130)
    interrupted = store.runs("refine")[0]
    assert interrupted.info.status == "KILLED"
    store.run("refine", *QUICK, "--study-name", "cut")
    resumed = store.runs("refine")[0]
    # The trial that was cut short is tried again; the finished one is not.
    again = [run.data.metrics["trained_lr_max"] for run in trials(store, resumed)]
    assert again == whole[1:]
    study = optuna.load_study(study_name="cut", storage="sqlite:///optuna.db")
    complete = [t.params["peak_lr"] for t in study.trials if t.state.name != "FAIL"]
    assert complete == pytest.approx(whole)


@pytest.mark.starts_with("refine")
def test_the_same_options_go_on_with_the_same_study_without_a_name(store, lrrt):
    store.run("refine", *QUICK)
    again, first = store.runs("refine")
    assert len(trials(store, first)) == 4
    assert len(trials(store, again)) == 0
    assert again.data.metrics["refined_lr_max"] == first.data.metrics["refined_lr_max"]


@pytest.mark.starts_with("refine")
def test_more_trials_go_on_with_the_same_study(store, lrrt):
    store.run("refine", *QUICK, "--trials", 6)
    assert [int(run.data.params["trial"]) for run in trials(store, store.runs("refine")[0])] == [
        4,
        5,
    ]


@pytest.mark.starts_with("lrrt")
def test_a_study_of_another_range_test_is_refused_under_the_same_name(store, lrrt):
    quick = ("refine", "--trials", 1, "--trial-epochs", 1, "--study-name", "mine")
    store.run(*quick)
    store.run("lrrt", *store.SMALL, "--iterations", 60, "--seed", 1)
    store.run(*quick, code=2).names("mine", "range test", "study_name")
    outcome = store.run(*quick, "--lrrt-run-id", lrrt.info.run_id, "--trial-epochs", 2, code=2)
    outcome.names("mine", "options")


@pytest.mark.starts_with("refine")
def test_the_table_of_trials_does_not_name_the_machine(store, lrrt):
    table = store.csv(store.one("refine"), "trials.csv")
    assert {"number", "value", "params_peak_lr", "state"} <= {*table}
    assert not [name for name in table if "attrs" in name]


@pytest.mark.starts_with("lrrt")
def test_a_trial_is_by_default_a_quarter_of_the_training_that_train_does(store, lrrt):
    store.run("refine", "--trials", 1)
    run = store.one("refine")
    (trial,) = trials(store, run)
    assert len(store.history(trial, "val_loss")[1]) == TrainOptions.epochs / 4 == 5
    # The same search, which goes on.
    store.run("refine", "--trials", 2, "--trial-epochs", 5)
    (second,) = trials(store, store.runs("refine")[0])
    assert second.data.params["trial"] == "1"
    assert store.runs("refine")[0].data.params["study_name"] == run.data.params["study_name"]


@pytest.mark.starts_with("lrrt")
def test_trials_take_the_schedule_that_is_named(store, lrrt):
    quick = ("refine", "--trials", 1, "--trial-epochs", 1)
    store.run(*quick, "--schedule", "constant")
    run = store.one("refine")
    (trial,) = trials(store, run)
    assert set(store.history(trial, "lr")[1]) == {trial.data.metrics["trained_lr_max"]}
    assert run.data.params["schedule"] == "constant"
    store.run(*quick)
    one_cycle, constant = store.runs("refine")
    assert one_cycle.data.params["schedule"] == "one-cycle"
    # Another study, not the constant one gone on with.
    assert one_cycle.data.params["study_name"] != constant.data.params["study_name"]
    store.run(*quick, "--schedule", "onecycle", code=2).names("onecycle", "'one-cycle'")


@pytest.mark.starts_with("lrrt")
def test_any_optuna_storage_is_taken(store, lrrt, tmp_path):
    store.run(
        "refine",
        "--trials",
        1,
        "--trial-epochs",
        1,
        "--storage",
        f"sqlite:///{tmp_path}/elsewhere.db",
    )
    studies = optuna.get_all_study_names(f"sqlite:///{tmp_path}/elsewhere.db")
    assert len(studies) == 1


@pytest.mark.starts_with("lrrt")
def test_a_storage_that_cannot_be_used_is_named(store, lrrt):
    outcome = store.run("refine", *QUICK, "--storage", "nosuchdb://x", code=2)
    outcome.names("storage", "nosuchdb://x")


@pytest.mark.starts_with("refine")
def test_a_refinement_of_another_range_test_is_refused(store, lrrt):
    refine = store.one("refine")
    store.run("lrrt", *store.SMALL, "--iterations", 60, "--seed", 1)
    outcome = store.run("train", "--refine-run-id", "latest", code=2)
    outcome.names(refine.data.tags["lrrt.source_run_id"])


REFINED = "refined_range.json"


@pytest.mark.starts_with("refine")
def test_an_altered_range_is_refused(store):
    run = store.one("refine")
    path = store.file(run, REFINED)
    path.write_text(path.read_text().replace("1", "2"))
    outcome = store.run("train", "--refine-run-id", "latest", code=2)
    outcome.names(REFINED, run.info.run_id, "altered", "run refine")


@pytest.mark.starts_with("refine")
def test_a_range_that_cannot_be_read_is_one_line(store):
    run = store.one("refine")
    for content in (
        "", "{", "{}", '{"contract_version": 1}',
        '{"contract_version": 1, "range": {"min": 0.2, "max": 0.1}}',
    ):  # fmt: skip
        store.file(run, REFINED).write_text(content)
        # With its digest, so that nothing but the content is wrong.
        digest = hashlib.sha256(content.encode()).hexdigest()
        mlflow.MlflowClient().set_tag(run.info.run_id, "lrrt.refined_sha256", digest)
        outcome = store.run("train", "--refine-run-id", "latest", code=2)
        outcome.names(REFINED, run.info.run_id, "read", "run refine")


@pytest.mark.starts_with("refine")
def test_a_range_that_is_missing_names_the_stage_to_run_again(store):
    store.file(store.one("refine"), REFINED).unlink()
    outcome = store.run("train", "--refine-run-id", "latest", code=2)
    outcome.names(REFINED, "run refine")
