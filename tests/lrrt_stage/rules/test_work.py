"""How much is computed for the intervals of all rules, counted rather than timed."""

import numpy as np
import pytest

from lrrt_stage import RULES, LRCurve, confidence_all
from lrrt_stage.curve import smoothing
from lrrt_stage.rules import robust, uncertainty

RESAMPLES = 10


@pytest.fixture
def counted(monkeypatch):
    """A function that counts the calls of a module's function by its name."""
    calls = {}

    def count(module, name):
        function, calls[name] = getattr(module, name), 0

        def counting(*arguments, **named):
            calls[name] += 1
            return function(*arguments, **named)

        monkeypatch.setattr(module, name, counting)

    count(robust, "_isotonic")
    count(robust, "unimodal_regression")
    count(smoothing, "_weighted_means")
    monkeypatch.setattr(uncertainty, "RESAMPLES", RESAMPLES)
    return calls


@pytest.mark.parametrize("probed", [False, True])
def test_rules_share_the_averages_and_fits_of_the_resampled_curves(counted, probed):
    noise = np.random.default_rng(0).normal(0, 0.02, (2, 100))
    loss = np.r_[np.full(60, 4.0), np.linspace(4, 1, 20), np.geomspace(1, 99, 20)] + noise
    probe = {"probe_loss": loss[1]} if probed else {}
    curve = LRCurve(np.geomspace(1e-7, 100, 100), loss[0], **probe, stop="diverged")
    found = confidence_all(curve)
    assert all(found[rule].low > 0 for rule in RULES)
    # Most rules read the average of the training loss, and robust the fit; with a probe, that of
    # the curves with and without it. A few more are of the measured curve.
    fits = 2 * RESAMPLES if probed else RESAMPLES
    assert RESAMPLES <= counted["_weighted_means"] <= RESAMPLES + 3
    assert fits <= counted["unimodal_regression"] <= fits + 6
    # The two directions of a fit.
    assert counted["_isotonic"] == 2 * counted["unimodal_regression"]
