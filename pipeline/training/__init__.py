"""Training inside a range of learning rates, and the search for its peak."""
