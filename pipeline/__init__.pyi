from .data.factories import DatasetFactory, ModelFactory
from .data.splits import Data, Split
from .task.plan import RangeTestPlan, ValidationOptions
from .task.prepared import PreparedTask
from .task.recipes import RECIPES, RecipeOptions, published_ranges
from .task.setup import Setup, SetupFactory
from .task.tasks import Runtime, Task
from .training.loop import Epoch, Training, train
from .training.narrowing import Narrowing
from .training.options import RefineOptions, ScheduleOptions, TrainOptions
from .training.refinement import best_range, refine
from .training.schedules import SCHEDULES, build_schedule

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
