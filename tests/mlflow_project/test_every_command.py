"""One small run through each command: what ``make test-fast`` knows of the stages."""

SHORT = ("--iterations", 60, "--workers", 1)


def test_the_commands_follow_one_another(store):
    store.run("lrrt", *store.SMALL, *SHORT)
    store.run("refine", "--trials", 1, "--trial-epochs", 1)
    store.run("train", "--epochs", 1, "--refine-run-id", "latest")
    lrrt, refine, train = (store.one(stage) for stage in ("lrrt", "refine", "train"))
    assert train.data.tags["lrrt.source_run_id"] == lrrt.info.run_id
    assert train.data.tags["lrrt.refine_run_id"] == refine.info.run_id
    assert train.data.tags["lrrt.first_loss_equal"] == "true"

    store.run("check")
    assert store.one("check").data.metrics["moved_decades"] == 0

    store.run("main", *store.SMALL, *SHORT, "--tests", 2, "--epochs", 1)
    again = store.runs("lrrt")[0]
    store.run("compare", lrrt.info.run_id, again.info.run_id)
    assert "overlay.png" in store.artifacts(store.one("compare"))

    store.run("study", *store.SMALL, *SHORT, "--tests", 2)
    assert "report.html" in store.artifacts(store.one("study"))
