"""Range tests and trainings as values, and the pool that runs them side by side."""
