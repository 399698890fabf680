from .curve.lr_curve import LRCurve
from .curve.lr_range import LRRange
from .curve.smoothing import AVERAGES, Smoothing, zero_phase
from .errors import LRRTError, NoSuggestion, Verdict
from .guard.gain import shows_gain
from .guard.guard import Attempt, AttemptsSpent, Guard
from .measure.evaluations import Validation
from .measure.options import RangeTestOptions, StepOptions
from .measure.ramp_loop import RangeTestInterrupted, range_test
from .measure.ramps import RAMPS, ramp
from .measure.step import TrainingStep
from .rules.consensus import Consensus, find_consensus
from .rules.reading import Reading
from .rules.registry import RULES, SuggestionOptions, rule, suggest, suggest_all
from .rules.robust import UnimodalFit, fit_unimodal
from .rules.uncertainty import Confidence, Suggestion, confidence, confidence_all
from .state.device import deterministic, resolve_device
from .state.randomness import preserved_randomness, seeded
from .state.weights import INITIALIZERS, digest, initialize

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
