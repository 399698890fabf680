"""The learning-rate range test as a library, for any ``nn.Module``.

>>> curve = range_test(model, optimizer, loss_fn, loader)        # doctest: +SKIP
>>> suggest(curve)                                               # doctest: +SKIP
LRRange(min=0.021, max=0.65)
"""

from lrrt_stage import robust, rules  # which puts their rules into RULES
from lrrt_stage.curve import LRCurve
from lrrt_stage.device import deterministic, resolve_device
from lrrt_stage.errors import LRRTError, NoSuggestion, Verdict
from lrrt_stage.ramp import RAMPS, RangeTestOptions, ramp
from lrrt_stage.randomness import preserved_randomness, seeded
from lrrt_stage.range_test import RangeTestInterrupted, range_test
from lrrt_stage.robust import Valley, valley_of
from lrrt_stage.smoothing import AVERAGES, Smoothing, mean_age, zero_phase
from lrrt_stage.step import StepOptions, TrainingStep
from lrrt_stage.suggestion import (
    RULES,
    LRRange,
    SuggestionOptions,
    rule,
    suggest,
    suggest_all,
)
from lrrt_stage.trust import Confidence, confidence, confidence_all
from lrrt_stage.validation import Validation
from lrrt_stage.weights import INITIALIZERS, digest, initialize

__all__ = [
    "AVERAGES",
    "INITIALIZERS",
    "RAMPS",
    "RULES",
    "Confidence",
    "LRCurve",
    "LRRTError",
    "LRRange",
    "NoSuggestion",
    "RangeTestInterrupted",
    "RangeTestOptions",
    "Smoothing",
    "StepOptions",
    "SuggestionOptions",
    "TrainingStep",
    "Validation",
    "Valley",
    "Verdict",
    "confidence",
    "confidence_all",
    "deterministic",
    "digest",
    "initialize",
    "mean_age",
    "preserved_randomness",
    "ramp",
    "range_test",
    "resolve_device",
    "robust",
    "rule",
    "rules",
    "seeded",
    "suggest",
    "suggest_all",
    "valley_of",
    "zero_phase",
]
