"""``python -m mlflow_project``: the same commands as ``lrrt-stage``."""

from mlflow_project.cli import main

if __name__ == "__main__":
    main()
