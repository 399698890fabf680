"""What a range test is for: a task, its training, and the refinement between them."""

from pipeline.data import Data, Split
from pipeline.factories import DatasetFactory, ModelFactory
from pipeline.narrowing import Narrowing
from pipeline.plan import RangeTestPlan
from pipeline.recipes import RECIPES, RecipeOptions, published_ranges
from pipeline.refinement import RefineOptions, best_range, refine
from pipeline.schedules import SCHEDULES, build_schedule
from pipeline.task import Runtime, Task
from pipeline.training import Training, TrainOptions, train
from pipeline.validation import ValidationOptions
from pipeline.workbench import Workbench

__all__ = [
    "RECIPES",
    "SCHEDULES",
    "Data",
    "DatasetFactory",
    "ModelFactory",
    "Narrowing",
    "RangeTestPlan",
    "RecipeOptions",
    "RefineOptions",
    "Runtime",
    "Split",
    "Task",
    "TrainOptions",
    "Training",
    "ValidationOptions",
    "Workbench",
    "best_range",
    "build_schedule",
    "published_ranges",
    "refine",
    "train",
]
