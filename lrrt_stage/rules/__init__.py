"""From a curve to a suggested range, and how certain that suggestion is."""
