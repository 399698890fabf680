from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.task.tasks import Runtime, Task
from tests.strategies import JSON, result_or_refusal

OTHER = Task(
    dataset="imagefolder:/data/birds",
    dataset_args={"size": 32},
    model="mlp",
    model_args={"width": 7, "names": ["a", None, 0.1]},
    init="file:/tmp/w.safetensors",
    seed=2**62,
    data_seed=3,
    optimizer="adamw",
    momentum=0.1 + 0.2,
    weight_decay=0.0,
    batch_size=5,
    augment="crop-flip",
    accumulate=2,
    clip_norm=1.5,
    precision="bf16",
    channels_last=True,
    l2=1e-4,
    normalize=False,
    optimizer_args={"amsgrad": True},
    loss="CrossEntropyLoss",
    loss_args={"label_smoothing": 0.1},
)
OWN = Task(setup="mine:make", setup_args={"width": 3, "batch_size": 8}, seed=4, accumulate=2)


@pytest.mark.parametrize("task", [Task(), OTHER, OWN])
def test_a_task_comes_back_from_json_unchanged(task):
    again = Task(**json.loads(json.dumps(asdict(task))))
    assert again == task
    assert again.differences(task) == []


def test_differences_name_the_fields_and_both_values():
    mine = Task(batch_size=32, momentum=0.5, precision="bf16")

    assert sorted(mine.differences(Task())) == [
        "batch_size: 32, not 64",
        "momentum: 0.5, not 0.9",
        "precision: 'bf16', not 'fp32'",
    ]


def test_every_field_counts_as_a_difference():
    differing = {
        line.partition(":")[0] for each in (OTHER, OWN) for line in each.differences(Task())
    }
    assert differing == set(asdict(Task()))


def test_initial_weights_are_drawn_by_default_and_those_of_a_setup_are_kept():
    assert (Task().init, OWN.init) == ("kaiming_uniform", "own")


def test_options_of_the_built_in_setup_are_refused_beside_another(complains):
    with complains("batch_size=32, model=mlp", "'mine:make'", "setup_args"):
        Task(setup="mine:make", batch_size=32, model="mlp")
    with complains("setup='mine'", "package.module:factory"):
        Task(setup="mine")
    with complains("setup_args={'width': 3} without a setup"):
        Task(setup_args={"width": 3})


def test_changes_of_these_options_become_arguments_of_a_setup():
    changed = OWN.changed(batch_size=16, seed=5)

    assert changed.setup_args == {"width": 3, "batch_size": 16}
    assert (changed.seed, changed.batch_size) == (5, Task().batch_size)
    assert OTHER.changed(batch_size=16).batch_size == 16


def test_what_is_shown_of_a_task_are_the_options_of_its_setup():
    assert "setup" not in Task().flat()
    shown = OWN.flat()
    assert shown["setup_args.width"] == 3
    assert not {"dataset", "model", "setup_args"} & set(shown)


def test_a_task_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Task().seed = 3  # type: ignore[misc]


def test_two_tasks_do_not_share_their_arguments():
    one, other = Task(), Task()
    one.model_args["width"] = 3

    assert other.model_args == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("batch_size", -64),
        ("momentum", -0.1),
        ("momentum", 1.0),
        ("momentum", float("nan")),
        ("weight_decay", -1e-4),
        ("weight_decay", float("nan")),
        ("l2", -1e-4),
        ("l2", float("nan")),
        ("l2", float("inf")),
        ("seed", -1),
        ("seed", 2**63),
        ("data_seed", -1),
        ("data_seed", 2**63),
        ("accumulate", 0),
        ("accumulate", -2),
        ("clip_norm", 0.0),
        ("clip_norm", -1.0),
    ],
)
def test_a_value_out_of_bounds_is_named_with_a_remedy(complains, field, value):
    with complains(f"{field}={value}", ": "):
        Task(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "nearest"),
    [
        ("optimizer", "sdg", "sgd"),
        ("optimizer", "adamww", "adamw"),
        ("augment", "cropflip", "crop-flip"),
        ("augment", "shift_flip", "shift-flip"),
        ("precision", "fp23", "fp32"),
        ("init", "kaiming_unifrom", "kaiming_uniform"),
    ],
)
def test_an_unknown_name_brings_the_nearest(complains, field, value, nearest):
    with complains(f"unknown {field} {value!r}", f"did you mean {nearest!r}?"):
        Task(**{field: value})


def test_a_name_that_is_near_to_none_brings_all(complains):
    with complains("unknown optimizer 'xyzzy'", "adam, adamax, adamw"):
        Task(optimizer="xyzzy")


@pytest.mark.parametrize("init", ["own", "xavier_uniform", "kaiming_normal", "file:w", "run:1a2b"])
def test_every_way_to_initial_weights_is_taken(init):
    assert Task(init=init).init == init


def test_a_negative_number_of_workers_is_refused(complains):
    with complains("loader_workers=-1", "at least 0"):
        Runtime(loader_workers=-1)


USUAL = st.sampled_from([value for task in (Task(), OTHER, OWN) for value in asdict(task).values()])
ARGUMENTS = st.dictionaries(st.sampled_from(["width", "depth", "a b"]), JSON, max_size=2)


@given(
    st.sampled_from([Task(), OTHER, OWN]),
    st.sampled_from([*asdict(Task())]) | st.sampled_from(["model_args", "setup_args"]),
    ARGUMENTS | USUAL | JSON,
)
def test_any_task_goes_to_json_and_back_or_is_refused(task, name, value):
    changed = result_or_refusal(replace, task, **{name: value})
    if isinstance(changed, Task):
        text = json.dumps(asdict(changed), allow_nan=False)
        again = Task(**json.loads(text))
        assert again == changed
        assert json.dumps(asdict(again)) == text
        assert changed.flat()
