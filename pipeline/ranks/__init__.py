"""Several processes that share every batch: rank 0 runs the stages, the others what it calls."""
