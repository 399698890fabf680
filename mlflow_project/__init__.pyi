from .handoff.handoff import Handoff, load_handoff
from .stages.tracked_test import track_range_test

__all__ = [
    "Handoff",
    "load_handoff",
    "track_range_test",
]
