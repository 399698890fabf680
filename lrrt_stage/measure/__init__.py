"""The range test itself: the loop, one optimizer step, the probe, and validation."""
