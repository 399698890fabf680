"""`--recipe` on the commands: what it sets, and what wins over it."""

import pytest

# Written out, not imported: what the article says of its Keras variant.
KERAS = {
    "clip_norm": "1.0",
    "l2": "0.0001",
    "weight_decay": "0.0",
    "augment": "shift-flip",
    "normalize": "false",
    "beta": "0.98",
    "average": "corrected",
    "init": "kaiming_uniform",
}


def losses(store, run):
    return store.history(run, "train_loss")[1]


@pytest.mark.starts_with("lrrt")
def test_a_recipe_is_what_its_options_typed_out_are(store):
    plain = store.one("lrrt")
    store.run("lrrt", *store.SMALL, "--recipe", "keras")
    by_name = store.runs("lrrt")[0]
    assert by_name.data.params.items() >= {**KERAS, "recipe": "keras"}.items()
    # 10 - 20 · 0.98 / 3
    assert float(by_name.data.params["stop_multiple"]) == pytest.approx(3.46667, abs=1e-5)
    task = store.json(by_name, "task.json")["task"]
    assert (task["clip_norm"], task["l2"], task["normalize"]) == (1.0, 1e-4, False)

    typed = [word for name, value in KERAS.items() for word in (f"--{name}", value)]
    typed += ["--stop-multiple", 3.46667]
    store.run("lrrt", *store.SMALL, *typed)
    by_hand = store.runs("lrrt")[0]
    assert "recipe" not in by_hand.data.params
    assert losses(store, by_hand) == losses(store, by_name)

    assert losses(store, plain) != losses(store, by_name)


@pytest.mark.parametrize(
    "typed",
    [
        {"clip-norm": "none"},
        # The defaults without a recipe, but typed.
        {"clip-norm": "2.5", "augment": "none", "normalize": "true", "stop_multiple": "4.0"},
    ],
)
def test_what_is_typed_wins_over_the_recipe(store, typed):
    words = [word for name, value in typed.items() for word in (f"--{name}", value)]
    store.run("lrrt", *store.SMALL, "--iterations", 60, *words, "--recipe", "keras")
    params = store.one("lrrt").data.params
    logged = {name.replace("-", "_"): value for name, value in typed.items()}
    assert params.items() >= {**KERAS, **logged}.items()


def test_the_chain_takes_a_recipe_and_trains_with_it(store):
    store.run("main", *store.SMALL, "--recipe", "keras", "--epochs", 1)
    for stage in ("main", "lrrt", "train"):
        params = store.one(stage).data.params
        assert (params["l2"], params["augment"], params["clip_norm"]) == (
            "0.0001", "shift-flip", "1.0",
        )  # fmt: skip
    assert store.one("main").data.params["recipe"] == "keras"
    assert store.one("lrrt").data.params["recipe"] == "keras"
    assert store.one("train").data.tags["lrrt.first_loss_equal"] == "true"


@pytest.mark.parametrize("command", ["lrrt", "main"])
def test_an_unknown_recipe_brings_the_nearest_name_before_a_run_is_opened(store, command):
    store.run(command, "--recipe", "kerras", code=2).names("kerras", "'keras'")
    assert not store.runs()


def test_a_recipe_of_none_is_no_recipe(store):
    store.run("lrrt", *store.SMALL, "--iterations", 60, "--recipe", "none")
    params = store.one("lrrt").data.params
    assert not {"recipe", "clip_norm", "l2"} & set(params)
