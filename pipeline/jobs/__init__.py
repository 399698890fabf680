"""Range tests and trainings as values, and the pool that runs them side by side."""

MAX_TESTS = 10_000
"""Of one command: all its jobs are in memory at once."""
