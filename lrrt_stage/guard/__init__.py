"""Watching a training, so that one that is being ruined starts again with lower learning rates."""
