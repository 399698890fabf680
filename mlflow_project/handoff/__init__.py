"""What one stage publishes for the next, and the checks on the way."""
