"""What a range test measures: the curve, its smoothing, and a range of learning rates."""
