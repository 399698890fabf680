"""What a range test is for: a task, its training, and the refinement between them."""

from pipeline.data.factories import DatasetFactory, ModelFactory
from pipeline.data.splits import Data, Split
from pipeline.task.plan import RangeTestPlan, ValidationOptions
from pipeline.task.prepared import PreparedTask
from pipeline.task.recipes import RECIPES, RecipeOptions, published_ranges
from pipeline.task.setup import Setup, SetupFactory
from pipeline.task.tasks import Runtime, Task
from pipeline.training.loop import Epoch, ScheduleOptions, Training, TrainOptions, train
from pipeline.training.narrowing import Narrowing
from pipeline.training.refinement import RefineOptions, best_range, refine
from pipeline.training.schedules import SCHEDULES, build_schedule

__all__ = [
    "RECIPES",
    "SCHEDULES",
    "Data",
    "DatasetFactory",
    "Epoch",
    "ModelFactory",
    "Narrowing",
    "PreparedTask",
    "RangeTestPlan",
    "RecipeOptions",
    "RefineOptions",
    "Runtime",
    "ScheduleOptions",
    "Setup",
    "SetupFactory",
    "Split",
    "Task",
    "TrainOptions",
    "Training",
    "ValidationOptions",
    "best_range",
    "build_schedule",
    "published_ranges",
    "refine",
    "train",
]
