"""The range test for the objects of other frameworks.

>>> curve = range_test(**from_lightning(module, datamodule))     # doctest: +SKIP
>>> curve = range_test(**from_transformers(trainer))             # doctest: +SKIP
>>> curve = range_test(**from_fastai(learn))                     # doctest: +SKIP

Importing this package imports none of the frameworks.
"""

from lrrt_stage.adapters.arguments import RangeTestArguments
from lrrt_stage.adapters.fastai import from_fastai
from lrrt_stage.adapters.lightning import from_lightning, set_lightning_lr
from lrrt_stage.adapters.transformers import from_transformers

__all__ = [
    "RangeTestArguments",
    "from_fastai",
    "from_lightning",
    "from_transformers",
    "set_lightning_lr",
]
