"""What a range test and the training after it agree on, and that made ready to run."""
