"""What a range test is for: a task, its training, and the refinement between them."""

from pipeline.data import Data
from pipeline.narrowing import Narrowing
from pipeline.recipes import RECIPES, RecipeOptions, published_ranges
from pipeline.refinement import RefineOptions, best_range, refine
from pipeline.schedules import SCHEDULES, build_schedule
from pipeline.task import Runtime, Task
from pipeline.training import Training, TrainOptions, train
from pipeline.workbench import Workbench

__all__ = [
    "RECIPES",
    "SCHEDULES",
    "Data",
    "Narrowing",
    "RecipeOptions",
    "RefineOptions",
    "Runtime",
    "Task",
    "TrainOptions",
    "Training",
    "Workbench",
    "best_range",
    "build_schedule",
    "published_ranges",
    "refine",
    "train",
]
