"""One module per stage: each opens a run, calls the pipeline, and logs what came out."""

from mlflow_project.stages.chain import ChainOptions, chain
from mlflow_project.stages.check import CheckOptions, check_stage
from mlflow_project.stages.compare import compare_stage
from mlflow_project.stages.lrrt import lrrt
from mlflow_project.stages.opening import HandoffOptions
from mlflow_project.stages.refine import refine_stage
from mlflow_project.stages.study import study_stage
from mlflow_project.stages.train import TrainRunOptions, train_stage

__all__ = [
    "ChainOptions",
    "CheckOptions",
    "HandoffOptions",
    "TrainRunOptions",
    "chain",
    "check_stage",
    "compare_stage",
    "lrrt",
    "refine_stage",
    "study_stage",
    "train_stage",
]
