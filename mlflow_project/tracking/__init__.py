"""How runs are opened, named, described, and logged in MLflow."""
