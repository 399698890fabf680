"""Which examples a range test is validated on, and how often."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lrrt_stage.settings import check_choices, require, setting

__all__ = ["ValidationOptions", "full_looks", "stratified"]

LEAST_PROBE = 64
"""The probe's examples are the same at every iteration, so that few will do; but with fewer than
this, the answer depends on which they are."""
LEAST_LOOKS, MOST_LOOKS = 2, 5
FULL_SHARE = 0.15
"""Looks at the full set may take this share of the examples that the test trains on. To evaluate
an example costs a quarter to two fifths of training on it, so a third of a batch at every
iteration and these looks together stay below 35 % of the test."""


@dataclass(frozen=True)
class ValidationOptions:
    """What a range test evaluates at every iteration that it does not train on.

    ``sample`` evaluates a fixed, stratified sample at every iteration and the full set at a few;
    ``full`` the full set at every iteration, as the article did (Fig 8), at many times the cost.
    """

    validation: str = setting(
        "none",
        "Validation loss at every iteration, on a sample or the full set.",
        choices=("none", "sample", "full"),
    )
    validation_sample: int | None = setting(
        None, "Examples in the sample; none: a third of a batch."
    )

    probe: int | None = setting(
        None,
        "Validation examples whose loss is taken at every iteration, for the rule robust; none: a "
        "third of a batch, but at least 64; 0: off.",
    )

    def __post_init__(self) -> None:
        check_choices(self)
        require(
            self.probe is None or self.probe == 0 or self.probe >= 2,
            f"probe={self.probe} is not 0 or at least 2, which batch norm needs: use none for the "
            "default, 0 to switch it off",
        )
        require(
            self.validation_sample is None or self.validation_sample >= 1,
            f"validation_sample={self.validation_sample} is below 1: use none for the default",
        )

    def probe_size(self, batch_size: int, available: int) -> int:
        """Return the number of examples in the probe, at most those ``available``.

        Of a single one there is none, since batch norm needs two.
        """
        if available < 2:
            return 0
        default = max(LEAST_PROBE, batch_size // 3)
        return min(default if self.probe is None else self.probe, available)

    def sample_size(self, batch_size: int, available: int) -> int:
        """Return the number of examples in the sample, at most those ``available``."""
        return min(self.validation_sample or max(1, batch_size // 3), available)


def stratified(labels: np.ndarray, size: int) -> np.ndarray:
    """Return ``size`` indices in which every class has its share of ``labels``, shape ``[n]``.

    Evenly spaced over the examples sorted by label: the same at every call, without a seed.
    """
    order = np.argsort(labels, kind="stable")
    places = (np.arange(size) + 0.5) * len(labels) / size
    return np.sort(order[places.astype(int)])


def full_looks(iterations: int, batch_size: int, available: int) -> int:
    """Return how often the full set of ``available`` examples is looked at: 2 to 5 times."""
    affordable = int(FULL_SHARE * iterations * batch_size / available)
    return max(LEAST_LOOKS, min(MOST_LOOKS, affordable))
