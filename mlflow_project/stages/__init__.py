"""One module per stage: each opens a run, calls the pipeline, and logs the result."""
