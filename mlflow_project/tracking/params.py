"""Which options become parameters of a run: those that tell runs apart in the UI's table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

import mlflow
from mlflow.entities import Param, Run

from lrrt_stage.settings import hide_passwords, option_text
from pipeline import RangeTestPlan

__all__ = ["OPTIONS", "log_options", "log_params", "shown"]

OPTIONS = "options.json"
COLUMNS = {
    *("dataset", "model", "optimizer", "batch_size", "init", "seed", "data_seed"),
    *("lr_start", "lr_end", "rule", "schedule", "epochs", "trials", "kind"),
}
"""Options that are always a parameter; any other is one where it is not the default."""

FOLDER = re.compile(r"^(file://|(?:[\w+.-]+:)?(?:///(?=/))?)(?!//)[~/](?:.*/)?([^/]+)/*$")
"""A path that does not depend on where a command is run, as it stands alone or after a kind
(``imagefolder:``) or in an address (``sqlite:///``): what is before it, and its last part."""


def log_options(run: Run, *options: Any, **more: Any) -> None:
    """Log options (dataclasses) and ``more`` as parameters, and all of them as ``options.json``.

    A default is left out of the parameters unless it is in :data:`COLUMNS` or the recipe sets the
    option, so that a comparison of runs shows what differs. Parameters that ``mlflow run`` has
    logged already, as they were typed, stay. Folders and passwords are left out of what is shown.
    """
    columns_shown, everything = dict(more), dict(more)
    plans = [each for each in options if isinstance(each, RangeTestPlan)]
    columns = COLUMNS.union(*(plan.recipe.values for plan in plans))
    for field, value in _fields(options):
        everything[field.name] = value
        if field.name in columns or value != _default(field):
            columns_shown[field.name] = value
    log_params(run, columns_shown)
    hidden = _within(everything, hide_passwords)
    mlflow.MlflowClient().log_dict(run.info.run_id, dict(sorted(hidden.items())), OPTIONS)


def log_params(run: Run, values: Mapping[str, Any]) -> None:
    """Log parameters, all of them; those that are there already stay."""
    client = mlflow.MlflowClient()
    there = client.get_run(run.info.run_id).data.params
    params = [Param(name, shown(value)) for name, value in values.items() if name not in there]
    client.log_batch(run.info.run_id, params=params)


def _fields(options: tuple[Any, ...]) -> Iterator[tuple[Field[Any], Any]]:
    """Yield every option with its value; dataclasses in dataclasses are taken apart."""
    for each in options:
        for field in fields(each):
            value = getattr(each, field.name)
            if is_dataclass(value):
                yield from _fields((value,))
            else:
                yield field, value


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def shown(value: Any) -> str:
    """Return an option as it was typed, without the folder of a path and without a password."""
    return option_text(_within(value, lambda text: FOLDER.sub(r"\1\2", hide_passwords(text))))


def _within(value: Any, change: Callable[[str], str]) -> Any:
    """Return a value with every text in it changed, however deep in lists and dicts."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _within(each, change) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_within(each, change) for each in value]
    return value
