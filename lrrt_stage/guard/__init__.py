"""Watching a training, so that one that is being ruined starts again with lower learning rates."""

ATTEMPTS, MOST_ATTEMPTS = 3, 4
"""At a training: by default, and at most."""
