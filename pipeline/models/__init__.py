"""The built-in models and optimizers."""
