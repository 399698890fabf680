"""The learning-rate range test as a library, for any ``nn.Module``.

>>> curve = range_test(model, optimizer, loss_fn, loader)        # doctest: +SKIP
>>> suggest(curve)                                               # doctest: +SKIP
LRRange(min=0.021, max=0.65)
"""

from lrrt_stage.curve.lr_curve import LRCurve
from lrrt_stage.curve.lr_range import LRRange
from lrrt_stage.curve.smoothing import AVERAGES, Smoothing, zero_phase
from lrrt_stage.errors import LRRTError, NoSuggestion, Verdict
from lrrt_stage.guard.gain import shows_gain
from lrrt_stage.guard.guard import Attempt, AttemptsSpent, Guard
from lrrt_stage.measure.evaluations import Validation
from lrrt_stage.measure.ramp_loop import RangeTestInterrupted, range_test
from lrrt_stage.measure.ramps import RAMPS, RangeTestOptions, ramp
from lrrt_stage.measure.step import StepOptions, TrainingStep
from lrrt_stage.rules.consensus import Consensus, find_consensus
from lrrt_stage.rules.reading import Reading
from lrrt_stage.rules.registry import RULES, SuggestionOptions, rule, suggest, suggest_all
from lrrt_stage.rules.robust import UnimodalFit, fit_unimodal
from lrrt_stage.rules.uncertainty import Confidence, Suggestion, confidence, confidence_all
from lrrt_stage.state.device import deterministic, resolve_device
from lrrt_stage.state.randomness import preserved_randomness, seeded
from lrrt_stage.state.weights import INITIALIZERS, digest, initialize

__all__ = [
    "AVERAGES",
    "INITIALIZERS",
    "RAMPS",
    "RULES",
    "Attempt",
    "AttemptsSpent",
    "Confidence",
    "Consensus",
    "Guard",
    "LRCurve",
    "LRRTError",
    "LRRange",
    "NoSuggestion",
    "RangeTestInterrupted",
    "RangeTestOptions",
    "Reading",
    "Smoothing",
    "StepOptions",
    "Suggestion",
    "SuggestionOptions",
    "TrainingStep",
    "UnimodalFit",
    "Validation",
    "Verdict",
    "confidence",
    "confidence_all",
    "deterministic",
    "digest",
    "find_consensus",
    "fit_unimodal",
    "initialize",
    "preserved_randomness",
    "ramp",
    "range_test",
    "resolve_device",
    "rule",
    "seeded",
    "shows_gain",
    "suggest",
    "suggest_all",
    "zero_phase",
]


def _curve_html(curve: LRCurve) -> str:
    """Return a curve as HTML for a notebook."""
    # Imported at first use, since drawing needs matplotlib and measuring does not.
    from lrrt_stage.plots.notebook import curve_html

    return curve_html(curve)


# Attached here, so that `curve` does not import `plots`.
LRCurve._repr_html_ = _curve_html  # type: ignore[attr-defined]
