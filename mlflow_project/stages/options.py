"""The options of the stages that are not those of a task, a range test or a training.

Importing this imports neither torch nor MLflow.
"""

from __future__ import annotations

from dataclasses import dataclass

from lrrt_stage.rules.uncertainty import CLEAR_DECADES
from lrrt_stage.settings import Options, setting
from mlflow_project.handoff.names import trusted_names

__all__ = [
    "CheckOptions",
    "HandoffOptions",
    "MainOptions",
    "SignatureOptions",
    "TrainRunOptions",
    "TrustOptions",
]


@dataclass(frozen=True)
class SignatureOptions(Options):
    """Whether runs that are read must be signed."""

    require_signature: bool = setting(
        False,
        "Use only runs that are signed with the key in LRRT_SIGNING_KEY; LRRT_REQUIRE_SIGNATURE "
        "sets it as well.",
    )


@dataclass(frozen=True)
class TrustOptions(SignatureOptions):
    """What a hand-off, which somebody else may have written, may choose here."""

    trust: str | None = setting(
        None,
        "Modules (a.b), functions (a.b:c), paths (imagefolder:PATH, file:PATH) and variables "
        "(env:NAME), separated by commas, that a run may name, beside those of LRRT_TRUST; what "
        "you name in an option needs no trust.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        trusted_names(self.trust)


@dataclass(frozen=True)
class HandoffOptions(TrustOptions):
    """The range test that a stage continues from."""

    lrrt_run_id: str = setting(
        "latest", "Range-test run; latest: the newest finished one of the experiment."
    )
    allow_mismatch: bool = setting(
        False, "Continue although the task differs from the range test's."
    )


@dataclass(frozen=True)
class CheckOptions(TrustOptions):
    """What is compared with what, and how strictly."""

    baseline: str = setting(
        "latest",
        "Run (train, main, refine, lrrt, check) or models:/NAME/VERSION to compare with; latest: "
        "the newest finished training of the experiment.",
    )
    lr: float | None = setting(
        None,
        "Learning rate in use; none: the largest that the baseline was trained with.",
        above=0,
    )
    tolerance: float = setting(
        round(CLEAR_DECADES, 2),
        "Decades by which the range may always move, and by which the learning rate may lie "
        "outside it: variation that one curve does not show, such as that of the data order.",
        minimum=0,
    )


@dataclass(frozen=True)
class MainOptions(Options):
    """Which steps are run."""

    refine: bool = setting(
        False,
        "Search for the peak learning rate in the suggested range before training. By default this "
        "costs about as much as the training, and gains little; longer trials gain more.",
    )
    reuse: bool = setting(
        False,
        "Reuse finished steps of the experiment with the same parameters and code, and continue a "
        "training that was interrupted.",
    )
    register: str | None = setting(None, "Name under which the model is registered; none: not.")


@dataclass(frozen=True)
class TrainRunOptions(Options):
    """What a training run continues from, and whether its model is registered."""

    refine_run_id: str | None = setting(
        None,
        "Refinement run whose range is trained (or latest); none: the suggested range, or what the "
        "narrowing leaves of it.",
    )
    register: str | None = setting(None, "Name under which the model is registered; none: not.")
    resume: str | None = setting(
        None, "Interrupted training to continue: its run ID or folder; none: start anew."
    )
